package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	subdir       = "identity"
	identityFile = "identity.pem"
	maxFile      = 1 << 20
)

// The blocks of the identity file, in this order.
const (
	blockCACert = "MARS CLUSTER CERTIFICATE"
	blockCAKey  = "MARS CLUSTER PRIVATE KEY"
	blockCert   = "MARS NODE CERTIFICATE"
	blockKey    = "MARS NODE PRIVATE KEY"
)

// Load reads the identity stored below dir. ErrNone says that there is none.
func Load(dir string) (*Identity, error) {
	name := filepath.Join(dir, subdir, identityFile)
	data, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	id, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read identity %s: %w: restore the file, or remove it and join the cluster again", name, err)
	}
	return id, nil
}

func parse(data []byte) (*Identity, error) {
	der := map[string][]byte{}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		der[block.Type] = block.Bytes
	}
	key, err := parseKey(der[blockKey])
	if err != nil {
		return nil, fmt.Errorf("the node's key: %w", err)
	}
	return assemble(Grant{Cert: der[blockCert], CACert: der[blockCACert], CAKey: der[blockCAKey]}, key)
}

// Save stores the identity below dir. When it returns nil the identity is durable; after a crash it is there completely or not at all.
func (id *Identity) Save(dir string) error {
	caKey, err1 := x509.MarshalPKCS8PrivateKey(id.caKey)
	key, err2 := x509.MarshalPKCS8PrivateKey(id.key)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	var data []byte
	for _, b := range []pem.Block{
		{Type: blockCACert, Bytes: id.ca.Raw}, {Type: blockCAKey, Bytes: caKey},
		{Type: blockCert, Bytes: id.cert.Raw}, {Type: blockKey, Bytes: key},
	} {
		data = append(data, pem.EncodeToMemory(&b)...)
	}
	return writeFile(filepath.Join(dir, subdir), identityFile, data)
}

// Remove deletes the identity below dir, and the tokens it had issued. When it returns nil that is durable. Nothing there is no error.
func Remove(dir string) error {
	dir = filepath.Join(dir, subdir)
	for _, name := range []string{identityFile, tokensFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove identity: %w", err)
		}
	}
	if err := syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove identity: %w", err)
	}
	return nil
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d", name, info.Size(), maxFile)
	}
	return os.ReadFile(name)
}

// writeFile replaces the file name in dir, both for the owner only. Like vfs.WriteFileAtomic, but it has to set permissions. A failed sync
// is not retried: the caller gives up.
func writeFile(dir, name string, data []byte) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	tmp := filepath.Join(dir, name+".tmp")
	if err := writeSynced(tmp, data); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("sync directory of %s: %w", name, err)
	}
	return nil
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("protect directory: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("sync parent of %s: %w", dir, err)
	}
	return nil
}

func writeSynced(name string, data []byte) (err error) {
	// A left-over of an earlier crash might have other permissions.
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
