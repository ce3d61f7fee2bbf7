package transport

import (
	"slices"
	"time"
)

// Class is a kind of traffic. Each gets its own connections, told apart by the application protocol that TLS negotiates (ALPN), so that one
// port serves all and none waits behind another.
type Class string

// The classes; their values are the ALPN names. A new, incompatible version of a protocol gets a new name.
const (
	Meta Class = "mars-meta/1"
	Log  Class = "mars-log/1"
	Sync Class = "mars-sync/1"
	// Join is the only class for those who are no members: they show no certificate, and must prove themselves by a token in the payload.
	Join Class = "mars-join/1"
)

// Classes lists all classes.
func Classes() []Class { return []Class{Meta, Log, Sync, Join} }

// DefaultMaxFrame is the largest payload of a frame, in bytes: 4 MiB of data and room for what describes it.
const DefaultMaxFrame = 4<<20 + 64<<10

// maxJoinFrame is small because the peer is a stranger.
const maxJoinFrame = 1 << 20

// Limits bounds what peers can make a listener use. Zero values mean the defaults.
type Limits struct {
	// Handshakes counts connections that are not authenticated yet; default 256. At the limit the oldest one of the host that has most is cut off,
	// so that whoever opens connections and says nothing hinders only himself.
	Handshakes int
	// HandshakesPerHost is the same per remote IP address; default 32.
	HandshakesPerHost int
	// Conns counts authenticated connections; default 1024. Further ones are refused.
	Conns int
	// ConnsPerPeer is the same per node; default 64.
	ConnsPerPeer int
	// Joins counts connections of class Join apart from those, because they are of strangers; default 64. HandshakesPerHost is the limit for each
	// remote IP address here, too. At a limit the oldest one that has not said anything yet is cut off, as with handshakes.
	Joins int
	// HandshakeTimeout is the time for everything until the connection is accepted; default 10 s.
	HandshakeTimeout time.Duration
	// MaxFrame is the largest payload per class in bytes; default DefaultMaxFrame, for Join 1 MiB.
	MaxFrame map[Class]int
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Handshakes, 256)
	def(&l.HandshakesPerHost, 32)
	def(&l.Conns, 1024)
	def(&l.ConnsPerPeer, 64)
	def(&l.Joins, 64)
	if l.HandshakeTimeout == 0 {
		l.HandshakeTimeout = 10 * time.Second
	}
	return l
}

func (l Limits) maxFrame(c Class) int {
	if n := l.MaxFrame[c]; n > 0 {
		return n
	}
	if c == Join {
		return maxJoinFrame
	}
	return DefaultMaxFrame
}

func known(c Class) bool { return slices.Contains(Classes(), c) }
