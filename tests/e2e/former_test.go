package e2e

import (
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestUsedTokenAfterInvalidate: beta has been primary and has handed over to alpha, which is lost. Then beta is invalidated, and the only source, gamma,
// stands where beta was still primary. beta must not become primary as if nothing had happened, also not after a restart: what it has written behind
// that, and alpha after it, is gone, and only --force says that this is known. After that all goes on as ever.
func TestUsedTokenAfterInvalidate(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	j := &stamp.Journal{}
	a.creates(res)
	b.gets(res)
	c.gets(res)
	b.do("primary", res)
	b.writeOnce(res, j)
	settle(res, b, a, c)
	c.do("pause-fetch", res)
	b.writeOnce(res, j)
	a.do("primary", res)
	a.kill()
	b.awaitSight(a, false)
	b.do("leave-resource", res, "--host", a.name, "--force")
	b.do("invalidate", res)
	b.awaitSelf(res, "beta is filled", func(m control.Member) bool { return m.Consistent })
	c.do("resume-fetch", res)

	b.refuses([]string{"used it already", "--force"}, "primary", res)
	c.refuses([]string{b.name, "used it already", "--force"}, "primary", res)
	b.kill()
	b.start()
	b.awaitSelf(res, "beta is attached again", func(m control.Member) bool { return m.Consistent })
	b.awaitSight(c, true)
	b.refuses([]string{"used it already", "--force"}, "primary", res)

	b.do("primary", res, "--force")
	b.writeOnce(res, j)
	settle(res, b, c)
	checkEqual(t, res, b, c)
	c.do("primary", res)
	b.do("invalidate", res)
	b.do("wait-resource", res, "uptodate")
	b.do("primary", res)
	settle(res, b, c)
	checkEqual(t, res, b, c)
}
