package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"mars/internal/vfs"
)

const (
	tokensFile = "tokens.json"
	// maxTokens bounds how many tokens one node remembers.
	maxTokens = 1000
	// remember is how long a used or expired token still gets its own error message.
	remember = 7 * 24 * time.Hour
)

// Why a token is refused.
var (
	ErrTokenUnknown = errors.New("join token is unknown here: it must be used at the node that issued it; issue a new one with join-token")
	ErrTokenUsed    = errors.New("join token was used already: each is good for one node; issue a new one with join-token")
	ErrTokenExpired = errors.New("join token has expired: issue a new one with join-token, and compare the clocks of the two hosts")
	ErrTokenLimit   = errors.New("too many join tokens are outstanding: wait until some expire")
)

// Tokens remembers which tokens this node has issued, on disk. It stores only hashes of their secrets. It is safe for concurrent use.
type Tokens struct {
	files files
	dir   string

	// mu makes changes of the file strictly one after the other - that is what makes a token good for only one use - and so is held while the
	// file is written. Nothing else waits for it.
	mu struct {
		sync.Mutex
		records []tokenRecord
	}
}

type tokenRecord struct {
	Hash   []byte `json:"hash"`   // SHA-256 of the secret
	Expiry int64  `json:"expiry"` // seconds since the epoch
	Used   bool   `json:"used,omitempty"`
}

// OpenTokens reads what is remembered below dir.
func OpenTokens(dir string) (*Tokens, error) { return disk.openTokens(dir) }

func (f files) openTokens(dir string) (*Tokens, error) {
	t := &Tokens{files: f, dir: filepath.Join(dir, subdir)}
	name := filepath.Join(t.dir, tokensFile)
	data, err := vfs.ReadFile(f.fs, name, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read join tokens: %w", err)
	}
	if err := json.Unmarshal(data, &t.mu.records); err != nil {
		return nil, fmt.Errorf("read join tokens %s: %w: remove the file and issue new tokens", name, err)
	}
	return t, nil
}

// Add remembers tok as issued. When it returns nil that is durable.
func (t *Tokens) Add(tok Token, now time.Time) error {
	hash := sha256.Sum256(tok.Secret[:])
	t.mu.Lock()
	defer t.mu.Unlock()
	records := recent(t.mu.records, now)
	if len(records) >= maxTokens {
		return ErrTokenLimit
	}
	return t.save(append(records, tokenRecord{Hash: hash[:], Expiry: tok.Expiry.Unix()}))
}

// recent leaves out those whose end nobody has to be told any more.
func recent(records []tokenRecord, now time.Time) []tokenRecord {
	var out []tokenRecord
	for _, r := range records {
		if time.Unix(r.Expiry, 0).Add(remember).After(now) {
			out = append(out, r)
		}
	}
	return out
}

// save replaces the file and then the memory; the caller holds mu.
func (t *Tokens) save(records []tokenRecord) error {
	data, err := json.Marshal(records)
	if err != nil {
		return fmt.Errorf("encode join tokens: %w", err)
	}
	if err := t.files.write(t.dir, tokensFile, data); err != nil {
		return fmt.Errorf("store join tokens: %w", err)
	}
	t.mu.records = records
	return nil
}

// Check tells whether Redeem would succeed now.
func (t *Tokens) Check(secret [secretBytes]byte, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := find(t.mu.records, secret, now)
	return err
}

// Redeem uses the token with this secret up. It returns nil at most once per token, also over crashes: when it does, the use is durable.
// Otherwise the error is one of ErrTokenUnknown, ErrTokenUsed and ErrTokenExpired, or says why the use could not be stored.
func (t *Tokens) Redeem(secret [secretBytes]byte, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, err := find(t.mu.records, secret, now)
	if err != nil {
		return err
	}
	// If the write fails half way the token may count as used after a restart, never as unused.
	t.mu.records[i].Used = true
	records := make([]tokenRecord, len(t.mu.records))
	copy(records, t.mu.records)
	return t.save(records)
}

// find compares with every record, in constant time each, so that timing tells nothing about any.
func find(records []tokenRecord, secret [secretBytes]byte, now time.Time) (index int, err error) {
	hash := sha256.Sum256(secret[:])
	index = -1
	for i, r := range records {
		if subtle.ConstantTimeCompare(r.Hash, hash[:]) == 1 {
			index = i
		}
	}
	switch {
	case index < 0:
		return index, ErrTokenUnknown
	case records[index].Used:
		return index, ErrTokenUsed
	case !now.Before(time.Unix(records[index].Expiry, 0)):
		return index, ErrTokenExpired
	}
	return index, nil
}
