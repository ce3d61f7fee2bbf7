package cluster

import (
	"encoding/json"
	"errors"
	"fmt"

	"mars/internal/identity"
	"mars/internal/meta"
	"mars/internal/transport"
)

// Frames of class Join, in this order:
//
//	newcomer -> member   request  JSON joinAsk
//	member -> newcomer   refuse   JSON joinNo, and that is the end; or
//	                     grant    JSON identity.Grant
//	                     entries  as in class Meta, any number of frames
//	                     end      empty
//	newcomer -> member   done     empty: everything is stored
const (
	joinRequest byte = 1
	joinRefuse  byte = 2
	joinGrant   byte = 3
	joinEntries byte = 4
	joinEnd     byte = 5
	joinDone    byte = 6
)

// maxJoinBytes bounds the metadata that a newcomer takes.
const maxJoinBytes = 1 << 30

// joinAsk is what a newcomer says.
type joinAsk struct {
	Proto  int    `json:"proto"`
	Secret []byte `json:"secret"`
	Name   string `json:"name"`
	Addr   string `json:"addr"`
	CSR    []byte `json:"csr"` // DER
}

// joinNo is a refusal: a code for programs and a text for people.
type joinNo struct {
	Code string `json:"code,omitempty"`
	Text string `json:"text"`
}

// joinCodes are the refusals that callers of Join branch on.
var joinCodes = map[string]error{
	"token-unknown": identity.ErrTokenUnknown,
	"token-used":    identity.ErrTokenUsed,
	"token-expired": identity.ErrTokenExpired,
	"name-taken":    ErrNameTaken,
	"config":        ErrConfig,
	"full":          meta.ErrFull,
	"not-a-member":  transport.ErrNotMember,
}

// refusedError is a refusal by the other side: its words, and the condition they stand for.
type refusedError struct {
	text string
	kind error // nil if there is no sentinel for it
}

func (e *refusedError) Error() string { return "refused: " + e.text }
func (e *refusedError) Unwrap() error { return e.kind }

func writeJSON(conn *transport.Conn, kind byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame %d: %w", kind, err)
	}
	return conn.WriteFrame(kind, data)
}

// writeRefusal tells the newcomer why, as well as it can: the connection is given up anyway.
func writeRefusal(conn *transport.Conn, why error) {
	no := joinNo{Text: why.Error()}
	for code, err := range joinCodes {
		if errors.Is(why, err) {
			no.Code = code
		}
	}
	if writeJSON(conn, joinRefuse, no) == nil {
		_ = conn.Flush()
	}
}

func readAsk(conn *transport.Conn) (joinAsk, error) {
	kind, payload, err := conn.ReadFrame(nil)
	if err != nil {
		return joinAsk{}, err
	}
	return decodeAsk(kind, payload)
}

func decodeAsk(kind byte, payload []byte) (joinAsk, error) {
	if kind != joinRequest {
		return joinAsk{}, fmt.Errorf("%w: frame %d instead of a request", errProtocol, kind)
	}
	var ask joinAsk
	if err := json.Unmarshal(payload, &ask); err != nil {
		return joinAsk{}, fmt.Errorf("%w: request: %w", errProtocol, err)
	}
	if ask.Proto < 1 {
		return joinAsk{}, fmt.Errorf("%w: request: version %d", errProtocol, ask.Proto)
	}
	return ask, nil
}

func readGrant(conn *transport.Conn) (identity.Grant, error) {
	kind, payload, err := conn.ReadFrame(nil)
	if err != nil {
		return identity.Grant{}, err
	}
	return decodeGrant(kind, payload)
}

func decodeGrant(kind byte, payload []byte) (g identity.Grant, err error) {
	switch kind {
	case joinRefuse:
		var no joinNo
		if err := json.Unmarshal(payload, &no); err != nil {
			return g, fmt.Errorf("%w: refusal: %w", errProtocol, err)
		}
		return g, &refusedError{text: no.Text, kind: joinCodes[no.Code]}
	case joinGrant:
		if err := json.Unmarshal(payload, &g); err != nil {
			return g, fmt.Errorf("%w: grant: %w", errProtocol, err)
		}
		return g, nil
	}
	return g, fmt.Errorf("%w: frame %d instead of an answer", errProtocol, kind)
}
