package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var t0 = time.Unix(1_700_000_000, 0)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, now time.Time) *Identity {
	t.Helper()
	id, err := Create(now)
	must(t, err)
	return id
}

// admit makes the identity of another node of id's cluster.
func admit(t testing.TB, id *Identity, now time.Time) *Identity {
	t.Helper()
	req, err := NewRequest()
	must(t, err)
	grant, err := id.Sign(req.CSR(), now)
	must(t, err)
	other, err := req.Complete(grant)
	must(t, err)
	return other
}

func chain(id *Identity) []*x509.Certificate { return []*x509.Certificate{id.cert, id.ca} }

func TestMembersKnowEachOther(t *testing.T) {
	a := create(t, t0)
	b := admit(t, a, t0)
	c := admit(t, b, t0) // any member can let others in
	for _, pair := range [][2]*Identity{{a, b}, {b, a}, {a, c}, {c, a}} {
		node, err := pair[0].Verify(chain(pair[1]))
		if err != nil || node != pair[1].Node() {
			t.Fatalf("%q, %v", node, err)
		}
	}
	if a.Cluster() != c.Cluster() || a.Node() == b.Node() || a.Pin() != c.Pin() {
		t.Fatal("ids are wrong")
	}
	must(t, CheckID(a.Cluster()))
	must(t, CheckID(a.Node()))
}

// A clock that is wrong by decades, in either direction, must not cut a cluster.
func TestDatesDoNotMatter(t *testing.T) {
	a := create(t, t0.AddDate(-50, 0, 0))
	b := admit(t, a, t0.AddDate(50, 0, 0))
	for _, pair := range [][2]*Identity{{a, b}, {b, a}} {
		if _, err := pair[0].Verify(chain(pair[1])); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCertificateDatesForOtherTools(t *testing.T) {
	cert := create(t, t0).cert
	if !cert.NotBefore.Equal(t0.Add(-24*time.Hour)) || cert.NotAfter.Before(t0.AddDate(9, 11, 0)) {
		t.Fatalf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
}

func TestForeignersAreRecognised(t *testing.T) {
	a, foreign := create(t, t0), create(t, t0)
	// An impostor has our cluster id, but not our authority.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ca, err := makeCA(a.Cluster(), key, t0)
	must(t, err)
	impostor := admit(t, &Identity{cluster: a.cluster, ca: ca, caKey: key}, t0)
	// A member that signs certificates with its own key.
	deputy := admit(t, &Identity{cluster: a.cluster, ca: a.ca, caKey: a.caKey}, t0)
	deep := signedBy(t, deputy, a.cluster)
	for name, certs := range map[string][]*x509.Certificate{
		"none": nil, "another cluster": chain(foreign), "impostor": chain(impostor), "impostor with our authority": {impostor.cert, a.ca},
		"the authority itself": {a.ca}, "signed by a member": {deep, deputy.cert, a.ca}, "named after another cluster": {signedBy(t, a, foreign.cluster)},
	} {
		if node, err := a.Verify(certs); !errors.Is(err, ErrForeign) || node != "" {
			t.Errorf("%s: %q, %v", name, node, err)
		}
	}
}

// signedBy makes a node certificate of the given cluster; signed by issuer's authority, or, unless issuer is of that cluster, by its node key.
func signedBy(t *testing.T, issuer *Identity, cluster string) *x509.Certificate {
	t.Helper()
	parent, parentKey := issuer.ca, issuer.caKey
	if issuer.cluster == cluster {
		parent, parentKey = issuer.cert, issuer.key
	}
	node := NewID()
	tmpl := template(cluster, node, t0)
	tmpl.Subject = pkix.Name{CommonName: node}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, issuer.key.Public(), parentKey)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert
}

func TestVerifyPinned(t *testing.T) {
	a, foreign := create(t, t0), create(t, t0)
	if node, err := VerifyPinned(chain(a), a.Pin()); err != nil || node != a.Node() {
		t.Fatalf("%q, %v", node, err)
	}
	for name, certs := range map[string][]*x509.Certificate{
		"none": nil, "no authority": {a.cert}, "foreign": chain(foreign), "foreign node with our authority": {foreign.cert, a.ca},
		"authority only": {a.ca}, "authority twice": {a.ca, a.ca},
	} {
		if _, err := VerifyPinned(certs, a.Pin()); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCompleteChecksTheGrant(t *testing.T) {
	a, foreign := create(t, t0), create(t, t0)
	req, err := NewRequest()
	must(t, err)
	good, err := a.Sign(req.CSR(), t0)
	must(t, err)
	bad, err := foreign.Sign(req.CSR(), t0)
	must(t, err)
	other, err := NewRequest()
	must(t, err)
	for name, g := range map[string]Grant{
		"empty": {}, "certificate of another cluster": {bad.Cert, good.CACert, good.CAKey}, "key of another cluster": {good.Cert, good.CACert, bad.CAKey},
	} {
		if _, err := req.Complete(g); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := other.Complete(good); err == nil {
		t.Error("somebody else's certificate was accepted")
	}
}

func TestSignRefusesBadRequests(t *testing.T) {
	a := create(t, t0)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	weird, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	csr := func(name string, key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
		must(t, err)
		return der
	}
	forged := csr(NewID(), key)
	forged[len(forged)-1] ^= 1
	for name, der := range map[string][]byte{
		"garbage": []byte("x"), "no id": csr("", key), "bad id": csr("../../etc", key), "other curve": csr(NewID(), weird), "forged": forged,
	} {
		if _, err := a.Sign(der, t0); err == nil {
			t.Errorf("%s: signed", name)
		}
		if _, err := Requester(der); err == nil {
			t.Errorf("%s: named", name)
		}
	}
}

func TestSaveLoadRemove(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); !errors.Is(err, ErrNone) {
		t.Fatalf("empty directory: %v", err)
	}
	must(t, Remove(dir))
	a := create(t, t0)
	sub := filepath.Join(dir, subdir)
	must(t, os.MkdirAll(sub, 0o755))
	must(t, os.WriteFile(filepath.Join(sub, identityFile+".tmp"), []byte("left over"), 0o644))
	must(t, a.Save(dir))
	wantMode(t, sub, 0o700)
	wantMode(t, filepath.Join(sub, identityFile), 0o600)
	got, err := Load(dir)
	must(t, err)
	if got.Node() != a.Node() || got.Cluster() != a.Cluster() {
		t.Fatal("loaded something else")
	}
	admit(t, got, t0) // keys work
	must(t, Remove(dir))
	if _, err := Load(dir); !errors.Is(err, ErrNone) {
		t.Fatalf("removed: %v", err)
	}
}

func wantMode(t *testing.T, name string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(name)
	must(t, err)
	if got := info.Mode().Perm(); got != want {
		t.Errorf("%s has mode %o, want %o", name, got, want)
	}
}

// What cannot be written must be told, and must not harm what is there.
func TestFailedSaveKeepsTheOld(t *testing.T) {
	dir := t.TempDir()
	a := create(t, t0)
	must(t, a.Save(dir))
	must(t, os.Mkdir(filepath.Join(dir, subdir, identityFile+".tmp"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, subdir, identityFile+".tmp", "x"), nil, 0o600))
	if err := create(t, t0).Save(dir); err == nil {
		t.Fatal("saved over a directory")
	}
	got, err := Load(dir)
	must(t, err)
	if got.Node() != a.Node() {
		t.Fatal("the old identity is lost")
	}
}

func TestDamagedFileIsNoIdentityAndSaysSo(t *testing.T) {
	dir := t.TempDir()
	must(t, create(t, t0).Save(dir))
	name := filepath.Join(dir, subdir, identityFile)
	data, err := os.ReadFile(name)
	must(t, err)
	for _, n := range []int{0, len(data) / 4, len(data) / 2, len(data) - 40} {
		must(t, os.WriteFile(name, data[:n], 0o600))
		if _, err := Load(dir); err == nil || errors.Is(err, ErrNone) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	dir := f.TempDir()
	must(f, create(f, t0).Save(dir))
	data, err := os.ReadFile(filepath.Join(dir, subdir, identityFile))
	must(f, err)
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := parse(b); err == nil && CheckID(id.Node()) != nil {
			t.Fatalf("accepted an identity with the id %q", id.Node())
		}
	})
}

func FuzzRequester(f *testing.F) {
	req, err := NewRequest()
	must(f, err)
	f.Add(req.CSR())
	f.Add([]byte{0x30})
	f.Fuzz(func(t *testing.T, b []byte) {
		if node, err := Requester(b); err == nil && CheckID(node) != nil {
			t.Fatalf("accepted the id %q", node)
		}
	})
}
