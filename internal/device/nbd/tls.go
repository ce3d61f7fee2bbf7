package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// TLSFiles are files in PEM.
type TLSFiles struct {
	Cert string // of the server, with the intermediate authorities behind it
	Key  string
	CA   string // the authorities whose clients may connect
}

// LoadTLS returns a configuration that serves only clients with a certificate of the CA. The files are read again for each connection, so that
// certificates can be renewed while clients are connected; if that fails, what was read last stays in force, and log tells.
func LoadTLS(files TLSFiles, log *slog.Logger) (*tls.Config, error) {
	c := &certificates{files: files, log: log}
	cfg, err := files.load()
	if err != nil {
		return nil, err
	}
	c.mu.good = cfg
	return &tls.Config{MinVersion: minTLS, GetConfigForClient: c.current}, nil
}

// minTLS: 1.2 for the sake of older clients; what Go offers of it is sound.
const minTLS = tls.VersionTLS12

// certificates are what is in the files, now or when they could last be read.
type certificates struct {
	files TLSFiles
	log   *slog.Logger

	mu struct {
		sync.Mutex
		good      *tls.Config
		complaint string // why the files could not be read the last time; "" when they could
	}
}

// current is a tls.Config.GetConfigForClient.
func (c *certificates) current(*tls.ClientHelloInfo) (*tls.Config, error) {
	cfg, err := c.files.load()
	complaint := ""
	if err != nil {
		complaint = err.Error()
	}
	c.mu.Lock()
	if err == nil {
		c.mu.good = cfg
	}
	cfg = c.mu.good
	fresh := complaint != c.mu.complaint
	c.mu.complaint = complaint
	c.mu.Unlock()
	if err != nil && fresh {
		c.log.Error("cannot read the NBD server's certificates again, the old ones stay in force", "err", err)
	}
	return cfg, nil
}

func (f TLSFiles) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("authority: %s: %w", f.CA, errNoCertificate)
	}
	return &tls.Config{
		MinVersion:   minTLS,
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		// Connections last; and a ticket would outlive the authority that has vouched for its client.
		SessionTicketsDisabled: true,
	}, nil
}

var errNoCertificate = errors.New("no certificate in PEM in it")
