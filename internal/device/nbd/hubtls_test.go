package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// secureHub is a hub with TLS that shows an export "vol".
func secureHub(t *testing.T, p *pki) (*Hub, *Export) {
	t.Helper()
	h := openHub(t, HubConfig{TLS: p.server(slog.New(slog.DiscardHandler))})
	return h, h.show(t, "vol", realDevice())
}

// secure upgrades the client; it returns what the handshake, or the first thing said after it, gives: with TLS 1.3 a client hears only then
// that its certificate was refused.
func (c *client) secure(cfg *tls.Config) error {
	c.t.Helper()
	c.expectOption(optStartTLS, nil, repAck)
	nc := tls.Client(c.nc, cfg)
	if err := nc.Handshake(); err != nil {
		return err
	}
	c.nc = nc
	if _, err := nc.Write(optionBytes(optStructuredReply, nil)); err != nil {
		return err
	}
	_, err := nc.Read(make([]byte, 20))
	return err
}

func TestHubRequiresTLS(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	h, e := secureHub(t, p)
	c := visit(t, h)
	for _, opt := range []uint32{optList, optInfo, optGo, optStructuredReply, optSetMetaContext} {
		c.expectOption(opt, nil, repErrTLSReqd)
	}
	if err := c.secure(p.client(p)); err != nil {
		t.Fatal(err)
	}
	c.structured = true
	if names := c.list(); !slices.Equal(names, []string{"vol"}) {
		t.Errorf("list is %q", names)
	}
	c.start("vol")
	c.read(0, 64<<10)
	if want := "NBD client " + c.nc.LocalAddr().String() + " (host7)"; !slices.Equal(e.Users(), []string{want}) {
		t.Errorf("users are %q, want %q", e.Users(), want)
	}
	if want := "nbds://" + h.address() + "/vol"; e.Path() != want {
		t.Errorf("path is %s, want %s", e.Path(), want)
	}
	old := visit(t, h)
	old.option(optExportName, []byte("vol"))
	old.expectClosed()
}

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	p, other := newPKI(t), newPKI(t)
	h, _ := secureHub(t, p)
	trusting := p.client(p)
	for name, cfg := range map[string]*tls.Config{
		"no certificate":                  {RootCAs: trusting.RootCAs, ServerName: "localhost"},
		"certificate of another CA":       p.client(other),
		"certificate for servers":         serverAsClient(t, p),
		"expired certificate":             expiredClient(t, p),
		"TLS 1.1":                         {RootCAs: trusting.RootCAs, ServerName: "localhost", GetClientCertificate: trusting.GetClientCertificate, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"client that expects another CA":  other.client(p),
		"client that expects another one": {RootCAs: trusting.RootCAs, ServerName: "elsewhere", GetClientCertificate: trusting.GetClientCertificate},
	} {
		if err := visit(t, h).secure(cfg); err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := trusting.Clone()
		cfg.MinVersion, cfg.MaxVersion = version, version
		if err := visit(t, h).secure(cfg); err != nil {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

func expiredClient(t *testing.T, p *pki) *tls.Config {
	t.Helper()
	key := newKey(t)
	cert := p.sign(&x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "host7"}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
	}, p.cert, &key.PublicKey)
	cfg := p.client(p)
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, nil
	}
	return cfg
}

func serverAsClient(t *testing.T, p *pki) *tls.Config {
	t.Helper()
	cfg := p.client(p)
	cert, err := tls.LoadX509KeyPair(p.path("server-cert.pem"), p.path("server-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return cfg
}

// TestCertificatesAreRenewed without a restart, which would cut all clients; and a botched renewal changes nothing.
func TestCertificatesAreRenewed(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	var log logBuffer
	h := openHub(t, HubConfig{TLS: p.server(slog.New(slog.NewTextHandler(&log, nil)))})
	serial := func() string {
		t.Helper()
		c := visit(t, h)
		if err := c.secure(p.client(p)); err != nil {
			t.Fatal(err)
		}
		return c.nc.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	p.issue("server", "server")
	second := serial()
	if first == second {
		t.Error("the renewed certificate is not used")
	}
	if err := os.Remove(p.path("server-key.pem")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := serial(); got != second {
			t.Error("a botched renewal has changed the certificate")
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("reported %d times: %s", n, log.String())
	}
	p.issue("server", "server")
	if got := serial(); got == second {
		t.Error("a repaired renewal is not used")
	}
}

func TestLoadTLSNamesTheFile(t *testing.T) {
	t.Parallel()
	p, log := newPKI(t), slog.New(slog.DiscardHandler)
	good := p.files()
	missing, junk := p.path("missing.pem"), p.path("junk.pem")
	if err := os.WriteFile(junk, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		files TLSFiles
		names string
		is    error
	}{
		{TLSFiles{missing, good.Key, good.CA}, missing, fs.ErrNotExist},
		{TLSFiles{good.Cert, missing, good.CA}, missing, fs.ErrNotExist},
		{TLSFiles{good.Cert, good.Key, missing}, missing, fs.ErrNotExist},
		{TLSFiles{junk, good.Key, good.CA}, junk, nil},
		{TLSFiles{good.Cert, junk, good.CA}, junk, nil},
		{TLSFiles{good.Cert, good.Key, junk}, junk, errNoCertificate},
		{TLSFiles{good.Cert, p.path("client-key.pem"), good.CA}, "client-key.pem", nil},
	} {
		_, err := LoadTLS(tt.files, log)
		if err == nil || !strings.Contains(err.Error(), tt.names) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%+v: %v", tt.files, err)
		}
	}
}
