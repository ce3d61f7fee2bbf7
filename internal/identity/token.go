package identity

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	secretBytes = 32
	// maxToken is generous: a token has some 250 characters.
	maxToken = 4 << 10
)

// ErrBadToken says that a string is not a join token.
var ErrBadToken = errors.New("not a join token")

// Token is the right to join a cluster once.
type Token struct {
	// Addr is the host:port of the member that issued the token; only that member accepts it.
	Addr string
	// Pin tells the newcomer that it talks to the right cluster, before it says anything secret.
	Pin    Pin
	Secret [secretBytes]byte
	Expiry time.Time // whole seconds
}

// NewToken makes a token with a new secret.
func NewToken(addr string, pin Pin, expiry time.Time) Token {
	t := Token{Addr: addr, Pin: pin, Expiry: expiry.Truncate(time.Second)}
	rand.Read(t.Secret[:]) // never fails
	return t
}

// wireToken is the JSON inside a token.
type wireToken struct {
	Addr   string `json:"addr"`
	Pin    []byte `json:"pin"`
	Secret []byte `json:"secret"`
	Expiry int64  `json:"expiry"` // seconds since the epoch
}

// String is the printed form: one line without blanks, base64url of JSON. It contains the secret.
func (t Token) String() string {
	// Marshalling these fields cannot fail.
	data, _ := json.Marshal(wireToken{Addr: t.Addr, Pin: t.Pin[:], Secret: t.Secret[:], Expiry: t.Expiry.Unix()})
	return base64.RawURLEncoding.EncodeToString(data)
}

// ParseToken reads the printed form, ignoring white space around it. The error wraps ErrBadToken and does not contain the token.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if len(s) > maxToken {
		return Token{}, fmt.Errorf("%w: %d characters are too many", ErrBadToken, len(s))
	}
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return Token{}, fmt.Errorf("%w: copy the whole line that was printed: %w", ErrBadToken, err)
	}
	var w wireToken
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return Token{}, fmt.Errorf("%w: copy the whole line that was printed", ErrBadToken)
	}
	t := Token{Addr: w.Addr, Expiry: time.Unix(w.Expiry, 0)}
	if copy(t.Pin[:], w.Pin) != len(w.Pin) || len(w.Pin) != len(t.Pin) ||
		copy(t.Secret[:], w.Secret) != len(w.Secret) || len(w.Secret) != secretBytes || w.Addr == "" {
		return Token{}, fmt.Errorf("%w: fields are missing or have the wrong size", ErrBadToken)
	}
	return t, nil
}

// SecretOf checks the size of a secret that came from elsewhere.
func SecretOf(b []byte) (secret [secretBytes]byte, err error) {
	if len(b) != secretBytes {
		return secret, fmt.Errorf("%w: the secret has %d bytes", ErrBadToken, len(b))
	}
	return [secretBytes]byte(b), nil
}
