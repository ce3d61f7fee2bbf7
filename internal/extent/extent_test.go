package extent

import (
	"math/rand/v2"
	"testing"

	"mars/internal/history"
)

// TestAgainstArray compares the map with the obvious model: one source per sector.
func TestAgainstArray(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		const sectors = 64
		var model [sectors]struct {
			set bool
			src Source
		}
		m := New()
		for step := range 40 {
			off := rng.Int64N(sectors)
			n := 1 + rng.Int64N(min(12, sectors-off))
			src := Source{Data: history.LSN(1000 * (step + 1))}
			if rng.IntN(4) == 0 {
				src = Source{Zero: true}
			}
			m.Insert(Extent{off, n, src})
			for i := range n {
				model[off+i].set, model[off+i].src = true, src.skip(i)
			}
			q := rng.Int64N(sectors)
			qn := 1 + rng.Int64N(sectors-q)
			pos := q
			for _, e := range m.Lookup(nil, q, qn) {
				for ; pos < e.Off; pos++ {
					if model[pos].set {
						t.Fatalf("seed %d step %d: sector %d is missing", seed, step, pos)
					}
				}
				for ; pos < e.end(); pos++ {
					if !model[pos].set || model[pos].src != e.Src.skip(pos-e.Off) {
						t.Fatalf("seed %d step %d: sector %d: got %v, want %v", seed, step, pos, e.Src.skip(pos-e.Off), model[pos])
					}
				}
			}
			for ; pos < q+qn; pos++ {
				if model[pos].set {
					t.Fatalf("seed %d step %d: sector %d is missing at the end", seed, step, pos)
				}
			}
		}
	}
}

func BenchmarkInsertRandom4K(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	m := New()
	for b.Loop() {
		if m.Len() > 100000 {
			m = New()
		}
		m.Insert(Extent{rng.Int64N(1<<20) << 12, 4096, Source{Data: 1}})
	}
}
