package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mars/internal/vfs"
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

// files is where identity and tokens are kept.
type files struct {
	fs      vfs.FS
	protect func(dir string) error // makes a directory the owner's alone
}

var disk = files{vfs.OS(), func(dir string) error { return os.Chmod(dir, 0o700) }}

// Load reads the identity stored below dir. ErrNone says that there is none.
func Load(dir string) (*Identity, error) { return disk.load(dir) }

func (f files) load(dir string) (*Identity, error) {
	name := filepath.Join(dir, subdir, identityFile)
	data, err := vfs.ReadFile(f.fs, name, maxFile)
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
func (id *Identity) Save(dir string) error { return disk.save(id, dir) }

func (f files) save(id *Identity, dir string) error {
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
	return f.write(filepath.Join(dir, subdir), identityFile, data)
}

// Remove deletes the identity below dir, and the tokens it had issued. When it returns nil that is durable. Nothing there is no error.
func Remove(dir string) error { return disk.remove(dir) }

func (f files) remove(dir string) error {
	dir = filepath.Join(dir, subdir)
	for _, name := range []string{identityFile, tokensFile} {
		if err := f.fs.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove identity: %w", err)
		}
	}
	if err := f.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove identity: %w", err)
	}
	return nil
}

// write replaces the file name in dir, both for the owner only.
func (f files) write(dir, name string, data []byte) error {
	if err := f.fs.MkdirAll(dir); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := f.protect(dir); err != nil {
		return fmt.Errorf("protect directory: %w", err)
	}
	name = filepath.Join(dir, name)
	// A left-over of an earlier crash might have other permissions.
	if err := f.fs.Remove(name + ".tmp"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return vfs.WriteFileAtomic(f.fs, name, data)
}
