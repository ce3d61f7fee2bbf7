package nbd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"sync"
	"testing"
	"time"
)

var selfSigned = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"nbd.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

func tlsConfig(t *testing.T) *tls.Config {
	t.Helper()
	cert, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

// startTLS upgrades the client.
func (c *client) startTLS() {
	c.t.Helper()
	c.expectOption(optStartTLS, nil, repAck)
	cert, err := selfSigned()
	if err != nil {
		c.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		c.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	nc := tls.Client(c.nc, &tls.Config{RootCAs: roots, ServerName: "nbd.test"})
	if err := nc.Handshake(); err != nil {
		c.t.Fatalf("TLS handshake: %v", err)
	}
	c.nc = nc
}

func TestTLSRequired(t *testing.T) {
	t.Parallel()
	s, path := serve(t, Config{Export: "vol", Dev: newBatchDevice(4 << 20), TLS: tlsConfig(t), TLSRequired: true})
	c := connect(t, path)
	c.greet()
	for _, opt := range []uint32{optList, optInfo, optGo, optStructuredReply, optSetMetaContext, optListMetaContext, 4711} {
		c.expectOption(opt, nil, repErrTLSReqd)
	}
	c.startTLS()
	c.expectOption(optStartTLS, nil, repErrInvalid) // not twice
	c.expectOption(optStructuredReply, nil, repAck)
	c.structured = true
	c.start("vol")
	want := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	c.write(0, want)
	if got := c.read(0, len(want)); !bytes.Equal(got, want) {
		t.Error("data came back changed")
	}
	for range 10 {
		c.send(requestBytes(header{cmd: cmdRead, cookie: 1, length: 512}, nil))
	}
	for range 10 {
		c.reply(512)
	}
	c.send(requestBytes(header{cmd: cmdDisc}, nil))
	c.expectClosed()
	waitFor(t, "the client to be gone", func() bool { return len(s.Clients()) == 0 })
}

func TestTLSRequiredForTheOldOption(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: newMemDevice(testSize), TLS: tlsConfig(t), TLSRequired: true})
	c := connect(t, path)
	c.greet()
	c.option(optExportName, nil)
	c.expectClosed()
}

func TestTLSIsOptional(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: newMemDevice(testSize), TLS: tlsConfig(t)})
	open(t, path, true).read(0, 512)
}

// TestTLSForgetsWhatWasSaidBefore: what was negotiated in the clear may have been said by somebody else.
func TestTLSForgetsWhatWasSaidBefore(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: newMemDevice(testSize), TLS: tlsConfig(t)})
	c := connect(t, path)
	c.greet()
	c.expectOption(optStructuredReply, nil, repAck)
	c.startTLS()
	c.expectOption(optSetMetaContext, metaData("", allocationContext), repErrInvalid)
	c.start("")
	c.read(0, 512) // a simple reply
}

// TestTLSRefusesInjectedOptions: bytes in the clear behind STARTTLS must not be taken for the client's.
func TestTLSRefusesInjectedOptions(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: newMemDevice(testSize), TLS: tlsConfig(t)})
	c := connect(t, path)
	c.greet()
	c.send(append(optionBytes(optStartTLS, nil), optionBytes(optStructuredReply, nil)...))
	c.expectClosed()
}
