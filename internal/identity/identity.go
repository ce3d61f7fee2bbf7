// Package identity says who is who: a cluster is a certificate authority, a node is a random id with a certificate from that authority, and
// a join token is the one-time right to get one.
//
// Guarantees:
//   - A node is known by an opaque id (16 random bytes, hexadecimal) that is made anew for every membership; names are labels that
//     somebody else keeps. A certificate carries cluster and node id as the URI mars://CLUSTER/NODE.
//   - The whole identity of a node is one file, replaced atomically: after a crash a node has it or has it not. The file and its directory are
//     readable by the owner only.
//   - A certificate is accepted if this cluster's authority signed it, at any date. Certificates do say how long they are valid (10
//     years, backdated by a day), for other tools, but a cluster must not fall apart because a clock jumps or ten years pass. Who is a member is
//     decided by the membership list in the metadata, which revokes at once, as no expiry date could.
//
// Trade-off, on purpose: every member holds the authority's key, so that any member can let a new one in and none is a single point of failure.
// The price is that whoever takes over one member can impersonate any other; but members already hold each other's data, and
// write access to the shared metadata. After such an incident make a new cluster; removing the node is not enough.
package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

const (
	validity  = 10 * 365 * 24 * time.Hour
	backdate  = 24 * time.Hour
	idBytes   = 16
	uriScheme = "mars"
)

// Conditions that callers branch on.
var (
	// ErrNone says that this host has no identity: it is in no cluster.
	ErrNone = errors.New("no identity")
	// ErrForeign says that a certificate was not issued by this cluster.
	ErrForeign = errors.New("certificate of a foreign cluster")
	// ErrBadID says that something is no node id.
	ErrBadID = errors.New("invalid id")
)

// Identity is what makes a host a node of a cluster. It does not change.
type Identity struct {
	cluster string
	node    string
	ca      *x509.Certificate
	caKey   *ecdsa.PrivateKey
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// Cluster is the id of the cluster.
func (id *Identity) Cluster() string { return id.cluster }

// Node is the id of this node.
func (id *Identity) Node() string { return id.node }

// Pin identifies the cluster's authority: the SHA-256 of its public key.
func (id *Identity) Pin() Pin { return pinOf(id.ca) }

// Pin is the SHA-256 of the public key (SubjectPublicKeyInfo) of an authority.
type Pin [sha256.Size]byte

func pinOf(cert *x509.Certificate) Pin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// Certificate is what this node shows to its peers: its certificate and that of the authority.
func (id *Identity) Certificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{id.cert.Raw, id.ca.Raw}, PrivateKey: id.key, Leaf: id.cert}
}

// NewID returns a random id.
func NewID() string {
	b := make([]byte, idBytes)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// CheckID tells whether s has the form of an id; the error wraps ErrBadID.
func CheckID(s string) error {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != idBytes || hex.EncodeToString(b) != s {
		return fmt.Errorf("%w: %.40q is not %d bytes in lower-case hexadecimal", ErrBadID, s, idBytes)
	}
	return nil
}

// Create makes a new cluster and the identity of its first node.
func Create(now time.Time) (*Identity, error) {
	cluster := NewID()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's key: %w", err)
	}
	ca, err := makeCA(cluster, caKey, now)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's certificate: %w", err)
	}
	req, err := NewRequest()
	if err != nil {
		return nil, err
	}
	issuer := &Identity{cluster: cluster, ca: ca, caKey: caKey}
	grant, err := issuer.Sign(req.CSR(), now)
	if err != nil {
		return nil, err
	}
	return req.Complete(grant)
}

func makeCA(cluster string, key *ecdsa.PrivateKey, now time.Time) (*x509.Certificate, error) {
	tmpl := template(cluster, "", now)
	tmpl.Subject = pkix.Name{CommonName: "mars cluster " + cluster}
	tmpl.IsCA = true
	tmpl.MaxPathLenZero = true
	tmpl.BasicConstraintsValid = true
	tmpl.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// template has what all our certificates share; node is empty for the authority.
func template(cluster, node string, now time.Time) *x509.Certificate {
	serial := make([]byte, idBytes)
	rand.Read(serial)
	serial[0] &= 0x7f
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(validity),
		URIs:         []*url.URL{{Scheme: uriScheme, Host: cluster, Path: "/" + node}},
	}
}

// Request is a node that asks to become a member: an id and a key that never leaves it.
type Request struct {
	node string
	key  *ecdsa.PrivateKey
	csr  []byte
}

// NewRequest makes a new node id and key.
func NewRequest() (*Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	node := NewID()
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}
	csr, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		return nil, fmt.Errorf("make the node's certificate request: %w", err)
	}
	return &Request{node: node, key: key, csr: csr}, nil
}

// Node is the id that the node will have.
func (r *Request) Node() string { return r.node }

// CSR is the certificate request to be signed by a member, in DER.
func (r *Request) CSR() []byte { return r.csr }

// Grant is what a member gives to a newcomer. It holds the authority's key: a secret.
type Grant struct {
	Cert   []byte // DER
	CACert []byte // DER
	CAKey  []byte // PKCS #8
}

// Requester returns the node id in a certificate request, after checking that whoever made it holds the key.
func Requester(csr []byte) (node string, err error) {
	req, err := parseCSR(csr)
	if err != nil {
		return "", err
	}
	return req.Subject.CommonName, nil
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if key, ok := req.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: the key is not ECDSA P-256")
	}
	if err := CheckID(req.Subject.CommonName); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return req, nil
}

// Sign makes the certificate for a request. Whether the requester may have it is the caller's decision.
func (id *Identity) Sign(csr []byte, now time.Time) (Grant, error) {
	req, err := parseCSR(csr)
	if err != nil {
		return Grant{}, err
	}
	tmpl := template(id.cluster, req.Subject.CommonName, now)
	tmpl.Subject = pkix.Name{CommonName: req.Subject.CommonName}
	tmpl.BasicConstraintsValid = true
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, id.ca, req.PublicKey, id.caKey)
	if err != nil {
		return Grant{}, fmt.Errorf("sign the certificate of node %s: %w", req.Subject.CommonName, err)
	}
	caKey, err := x509.MarshalPKCS8PrivateKey(id.caKey)
	if err != nil {
		return Grant{}, fmt.Errorf("encode the cluster's key: %w", err)
	}
	return Grant{Cert: der, CACert: id.ca.Raw, CAKey: caKey}, nil
}

// Complete makes the identity from a grant, after checking that everything in it belongs together and to this request.
func (r *Request) Complete(g Grant) (*Identity, error) {
	id, err := assemble(g, r.key)
	if err != nil {
		return nil, err
	}
	if id.node != r.node {
		return nil, fmt.Errorf("the certificate is for node %s, not for %s", id.node, r.node)
	}
	return id, nil
}

func assemble(g Grant, key *ecdsa.PrivateKey) (*Identity, error) {
	ca, err := x509.ParseCertificate(g.CACert)
	if err != nil {
		return nil, fmt.Errorf("the cluster's certificate: %w", err)
	}
	caKey, err := parseKey(g.CAKey)
	if err != nil {
		return nil, fmt.Errorf("the cluster's key: %w", err)
	}
	cert, err := x509.ParseCertificate(g.Cert)
	if err != nil {
		return nil, fmt.Errorf("the node's certificate: %w", err)
	}
	if !caKey.PublicKey.Equal(ca.PublicKey) {
		return nil, errors.New("the cluster's key does not belong to its certificate")
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the node's certificate is for another key")
	}
	cluster, _, err := names(ca)
	if err != nil {
		return nil, err
	}
	id := &Identity{cluster: cluster, ca: ca, caKey: caKey, cert: cert, key: key}
	id.node, err = id.Verify([]*x509.Certificate{cert})
	return id, err
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA P-256 key")
	}
	return ec, nil
}

// names reads cluster and node id from the URI in a certificate; the authority's has no node id.
func names(cert *x509.Certificate) (cluster, node string, err error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != uriScheme || len(cert.URIs[0].Path) == 0 {
		return "", "", fmt.Errorf("%w: it has no mars://CLUSTER/NODE name", ErrForeign)
	}
	cluster, node = cert.URIs[0].Host, cert.URIs[0].Path[1:]
	if err := CheckID(cluster); err != nil {
		return "", "", fmt.Errorf("cluster id in certificate: %w", err)
	}
	return cluster, node, nil
}

// Verify returns the node id of a peer that has shown certs, the first one being its own. Everything but a certificate issued directly by
// this cluster's authority to a node gives ErrForeign. That the peer holds the key is proven by TLS; that it is a member must be asked elsewhere.
func (id *Identity) Verify(certs []*x509.Certificate) (node string, err error) {
	return verifyLeaf(certs, id.ca)
}

func verifyLeaf(certs []*x509.Certificate, ca *x509.Certificate) (node string, err error) {
	if len(certs) == 0 {
		return "", fmt.Errorf("%w: none shown", ErrForeign)
	}
	leaf := certs[0]
	if err := leaf.CheckSignatureFrom(ca); err != nil {
		return "", fmt.Errorf("%w: %w", ErrForeign, err)
	}
	cluster, node, err := names(leaf)
	if err != nil {
		return "", err
	}
	own, _, err := names(ca)
	if err != nil {
		return "", err
	}
	if cluster != own || leaf.IsCA || leaf.Subject.CommonName != node {
		return "", fmt.Errorf("%w: names do not fit", ErrForeign)
	}
	if err := CheckID(node); err != nil {
		return "", fmt.Errorf("%w: %w", ErrForeign, err)
	}
	return node, nil
}

// VerifyPinned is Verify for somebody who is in no cluster yet and knows only the pin of the authority, whose certificate must be among certs.
func VerifyPinned(certs []*x509.Certificate, pin Pin) (node string, err error) {
	for _, ca := range certs[min(1, len(certs)):] {
		if got := pinOf(ca); bytes.Equal(got[:], pin[:]) && ca.IsCA {
			return verifyLeaf(certs, ca)
		}
	}
	return "", fmt.Errorf("%w: it does not have the authority that the token names", ErrForeign)
}
