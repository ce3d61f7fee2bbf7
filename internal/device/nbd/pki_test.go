package nbd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pki is an authority with a directory for what it issues, named as libnbd and qemu want: ca-cert.pem, client-cert.pem, client-key.pem,
// server-cert.pem, server-key.pem.
type pki struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir(), key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	p.cert = p.sign(template, template, &p.key.PublicKey)
	p.write("ca-cert.pem", "CERTIFICATE", p.cert.Raw)
	p.issue("server", "server")
	p.issue("client", "host7")
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (p *pki) sign(template, parent *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	p.t.Helper()
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert
}

// issue makes role-cert.pem and role-key.pem.
func (p *pki) issue(role, name string) {
	p.t.Helper()
	usage := x509.ExtKeyUsageClientAuth
	if role == "server" {
		usage = x509.ExtKeyUsageServerAuth
	}
	key := newKey(p.t)
	cert := p.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, p.cert, &key.PublicKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(role+"-cert.pem", "CERTIFICATE", cert.Raw)
	p.write(role+"-key.pem", "PRIVATE KEY", der)
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) write(name, kind string, der []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pki) files() TLSFiles {
	return TLSFiles{Cert: p.path("server-cert.pem"), Key: p.path("server-key.pem"), CA: p.path("ca-cert.pem")}
}

func (p *pki) server(log *slog.Logger) *tls.Config {
	p.t.Helper()
	cfg, err := LoadTLS(p.files(), log)
	if err != nil {
		p.t.Fatal(err)
	}
	return cfg
}

// client trusts the authority; its certificate comes from another one if that is given.
func (p *pki) client(from *pki) *tls.Config {
	p.t.Helper()
	cert, err := tls.LoadX509KeyPair(from.path("client-cert.pem"), from.path("client-key.pem"))
	if err != nil {
		p.t.Fatal(err)
	}
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	cfg.RootCAs.AddCert(p.cert)
	// Shown even to a server that does not know its authority.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return cfg
}
