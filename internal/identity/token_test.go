package identity

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestTokenRoundTrip(t *testing.T) {
	tok := NewToken("host.example:7777", create(t, t0).Pin(), t0.Add(time.Hour))
	s := tok.String()
	if strings.ContainsAny(s, " \n\t+/=") {
		t.Fatalf("not one plain word: %q", s)
	}
	got, err := ParseToken("  " + s + "\n")
	must(t, err)
	if got.Addr != tok.Addr || got.Pin != tok.Pin || got.Secret != tok.Secret || !got.Expiry.Equal(tok.Expiry) {
		t.Fatalf("got %+v, want %+v", got, tok)
	}
}

func TestBadTokens(t *testing.T) {
	enc := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	good := NewToken("h:1", Pin{}, t0).String()
	for name, s := range map[string]string{
		"empty": "", "not base64": "***", "not JSON": enc("x"), "no fields": enc("{}"), "cut": good[:len(good)-8], "too long": strings.Repeat("A", maxToken+1),
		"short secret":   enc(`{"addr":"h:1","pin":"` + strings.Repeat("A", 43) + `=","secret":"AAAA","expiry":1}`),
		"unknown fields": enc(`{"addr":"h:1","more":1}`),
	} {
		if _, err := ParseToken(s); !errors.Is(err, ErrBadToken) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken("h:1", Pin{1}, t0).String())
	f.Add("")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"addr":"h:1","pin":"AAAA","secret":"AAAA","expiry":-1}`)))
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrBadToken) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		again, err := ParseToken(tok.String())
		if err != nil || again.Addr != tok.Addr || again.Secret != tok.Secret || !again.Expiry.Equal(tok.Expiry) {
			t.Fatalf("%+v became %+v, %v", tok, again, err)
		}
	})
}

func openTokens(t *testing.T, dir string) *Tokens {
	t.Helper()
	tokens, err := OpenTokens(dir)
	must(t, err)
	return tokens
}

func TestTokenIsGoodOnce(t *testing.T) {
	dir := t.TempDir()
	tokens := openTokens(t, dir)
	tok := NewToken("h:1", Pin{}, t0.Add(time.Hour))
	must(t, tokens.Add(tok, t0))
	must(t, tokens.Check(tok.Secret, t0))
	tokens = openTokens(t, dir) // a restart does not forget it
	must(t, tokens.Redeem(tok.Secret, t0))
	for range 2 {
		if err := tokens.Redeem(tok.Secret, t0); !errors.Is(err, ErrTokenUsed) {
			t.Fatalf("second use: %v", err)
		}
		tokens = openTokens(t, dir) // nor that it was used
	}
}

func TestTokenRefusals(t *testing.T) {
	tokens := openTokens(t, t.TempDir())
	tok := NewToken("h:1", Pin{}, t0.Add(time.Hour))
	if err := tokens.Redeem(tok.Secret, t0); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("unknown: %v", err)
	}
	must(t, tokens.Add(tok, t0))
	if err := tokens.Redeem(tok.Secret, t0.Add(time.Hour)); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("expired: %v", err)
	}
	if err := tokens.Check(tok.Secret, t0.Add(time.Hour)); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("expired: %v", err)
	}
	near := tok.Secret
	near[31] ^= 1
	if err := tokens.Redeem(near, t0); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("one bit wrong: %v", err)
	}
	// Long after, it is forgotten when the next one is issued.
	later := t0.Add(time.Hour + remember + time.Second)
	must(t, tokens.Add(NewToken("h:1", Pin{}, later.Add(time.Hour)), later))
	if err := tokens.Check(tok.Secret, later); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("long expired: %v", err)
	}
}

func TestTokensAreBounded(t *testing.T) {
	tokens := &Tokens{files: disk, dir: t.TempDir()}
	for range maxTokens {
		tokens.mu.records = append(tokens.mu.records, tokenRecord{Expiry: t0.Unix()})
	}
	if err := tokens.Add(NewToken("h:1", Pin{}, t0), t0); !errors.Is(err, ErrTokenLimit) {
		t.Fatalf("one too many: %v", err)
	}
	must(t, tokens.Add(NewToken("h:1", Pin{}, t0), t0.Add(remember+time.Second)))
}

func TestSecretIsNotStored(t *testing.T) {
	dir := t.TempDir()
	tok := NewToken("h:1", Pin{}, t0.Add(time.Hour))
	must(t, openTokens(t, dir).Add(tok, t0))
	name := filepath.Join(dir, subdir, tokensFile)
	data, err := os.ReadFile(name)
	must(t, err)
	if strings.Contains(string(data), base64.StdEncoding.EncodeToString(tok.Secret[:])) {
		t.Fatal("the secret is on disk")
	}
	wantMode(t, name, 0o600)
}

// When the use cannot be stored the token must not work, for it would work again after a restart.
func TestRedeemFailsWhenItCannotBeStored(t *testing.T) {
	dir := t.TempDir()
	tokens := openTokens(t, dir)
	tok := NewToken("h:1", Pin{}, t0.Add(time.Hour))
	must(t, tokens.Add(tok, t0))
	tmp := filepath.Join(dir, subdir, tokensFile+".tmp")
	must(t, os.MkdirAll(filepath.Join(tmp, "in the way"), 0o700))
	if err := tokens.Redeem(tok.Secret, t0); err == nil {
		t.Fatal("redeemed without a disk")
	}
}

func TestOnlyOneOfManyRedeems(t *testing.T) {
	tokens := openTokens(t, t.TempDir())
	tok := NewToken("h:1", Pin{}, t0.Add(time.Hour))
	must(t, tokens.Add(tok, t0))
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if tokens.Redeem(tok.Secret, t0) == nil {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d redeemed it", wins.Load())
	}
}
