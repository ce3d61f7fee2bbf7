package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mars/internal/name"
)

// Verbs, as typed at marsadm. Aliases (connect, disconnect) are resolved there and never arrive here.
const (
	VerbCreateCluster  = "create-cluster"
	VerbJoinToken      = "join-token"
	VerbJoinCluster    = "join-cluster"
	VerbLeaveCluster   = "leave-cluster"
	VerbCreateResource = "create-resource"
	VerbJoinResource   = "join-resource"
	VerbLeaveResource  = "leave-resource"
	VerbDeleteResource = "delete-resource"
	VerbAttach         = "attach"
	VerbDetach         = "detach"
	VerbUp             = "up"
	VerbDown           = "down"
	VerbPauseFetch     = "pause-fetch"
	VerbResumeFetch    = "resume-fetch"
	VerbPauseReplay    = "pause-replay"
	VerbResumeReplay   = "resume-replay"
	VerbPauseSync      = "pause-sync"
	VerbResumeSync     = "resume-sync"
	VerbPrimary        = "primary"
	VerbSecondary      = "secondary"
	VerbInvalidate     = "invalidate"
	VerbWaitCluster    = "wait-cluster"
	VerbWaitResource   = "wait-resource"
	VerbWaitUmount     = "wait-umount"
	VerbLogRotate      = "log-rotate"
	VerbResize         = "resize"
)

// Bounds on what a command may carry; names have their own (package name).
const (
	maxPathBytes  = 4095 // Linux' PATH_MAX without its NUL
	maxTokenBytes = 4096
	maxAddrBytes  = 262                // the longest DNS name, a colon, a port and brackets
	MaxTTL        = 7 * 24 * time.Hour // a join token is a key to the cluster: none lives longer
)

// field is one optional part of a Command.
type field uint

const (
	fieldResource field = 1 << iota
	fieldDisk
	fieldSize
	fieldHost
	fieldForce
	fieldPeer
	fieldToken
	fieldTTL
	fieldCondition
)

var fieldNames = []string{"resource", "disk", "size", "host", "force", "peer", "token", "ttl", "condition"}

// spec says which fields a verb needs and which it can take.
type spec struct{ needs, takes field }

var onResource = spec{needs: fieldResource}

var specs = map[string]spec{
	VerbCreateCluster:  {},
	VerbJoinToken:      {takes: fieldTTL},
	VerbJoinCluster:    {needs: fieldPeer | fieldToken},
	VerbLeaveCluster:   {takes: fieldHost | fieldForce},
	VerbCreateResource: {needs: fieldResource | fieldDisk, takes: fieldSize},
	VerbJoinResource:   {needs: fieldResource | fieldDisk},
	VerbLeaveResource:  {needs: fieldResource, takes: fieldHost | fieldForce},
	VerbDeleteResource: {needs: fieldResource, takes: fieldForce},
	VerbAttach:         onResource,
	VerbDetach:         onResource,
	VerbUp:             onResource,
	VerbDown:           onResource,
	VerbPauseFetch:     onResource,
	VerbResumeFetch:    onResource,
	VerbPauseReplay:    onResource,
	VerbResumeReplay:   onResource,
	VerbPauseSync:      onResource,
	VerbResumeSync:     onResource,
	VerbPrimary:        {needs: fieldResource, takes: fieldForce},
	VerbSecondary:      onResource,
	VerbInvalidate:     onResource,
	VerbWaitCluster:    {},
	VerbWaitResource:   {needs: fieldResource | fieldCondition},
	VerbWaitUmount:     onResource,
	VerbLogRotate:      onResource,
	VerbResize:         {needs: fieldResource, takes: fieldSize},
}

// ErrUnknownVerb is wrapped by Validate's error for a verb that does not exist.
var ErrUnknownVerb = errors.New("unknown command")

// Validate returns why c cannot be carried out whatever the state of the cluster is, or nil. Both sides call it: marsadm to fail without the
// daemon, the server so that a Backend sees only verbs that exist, fields that belong to them, and names that are safe in paths.
func (c Command) Validate() error {
	s, ok := specs[c.Verb]
	if !ok {
		return fmt.Errorf("%w %q", ErrUnknownVerb, shorten(c.Verb))
	}
	has := c.fields()
	if missing := s.needs &^ has; missing != 0 {
		return fmt.Errorf("%s needs a %s", c.Verb, missing)
	}
	if extra := has &^ (s.needs | s.takes); extra != 0 {
		return fmt.Errorf("%s takes no %s", c.Verb, extra)
	}
	if err := c.validateFields(has); err != nil {
		return fmt.Errorf("%s: %w", c.Verb, err)
	}
	if c.Host != "" && !c.Force {
		return fmt.Errorf("%s --host acts for a node that cannot act itself: it needs --force", c.Verb)
	}
	return nil
}

// fields returns the set of fields that c carries.
func (c Command) fields() field {
	var set field
	for f, present := range map[field]bool{
		fieldResource:  c.Resource != "",
		fieldDisk:      c.Disk != "",
		fieldSize:      c.Size != 0,
		fieldHost:      c.Host != "",
		fieldForce:     c.Force,
		fieldPeer:      c.Peer != "",
		fieldToken:     c.Token != "",
		fieldTTL:       c.TTL != 0,
		fieldCondition: c.Condition != "",
	} {
		if present {
			set |= f
		}
	}
	return set
}

func (c Command) validateFields(has field) error {
	checks := []struct {
		field field
		check func() error
	}{
		{fieldResource, func() error { return name.CheckResource(c.Resource) }},
		{fieldDisk, func() error { return checkDisk(c.Disk) }},
		{fieldSize, func() error { return checkSize(c.Size) }},
		{fieldHost, func() error { return name.CheckNode(c.Host) }},
		{fieldPeer, func() error { return checkPeer(c.Peer) }},
		{fieldToken, func() error { return checkToken(c.Token) }},
		{fieldTTL, func() error { return checkTTL(c.TTL) }},
		{fieldCondition, func() error { return checkCondition(c.Condition) }},
	}
	for _, one := range checks {
		if has&one.field == 0 {
			continue
		}
		if err := one.check(); err != nil {
			return err
		}
	}
	return nil
}

// String names the fields of the set, for messages.
func (f field) String() string {
	var names []string
	for i, fieldName := range fieldNames {
		if f&(1<<i) != 0 {
			names = append(names, fieldName)
		}
	}
	return strings.Join(names, ", ")
}

func checkDisk(path string) error {
	switch {
	case len(path) > maxPathBytes:
		return fmt.Errorf("disk path has %d bytes: at most %d are allowed", len(path), maxPathBytes)
	case hasControl(path):
		return fmt.Errorf("disk path %q has control characters", shorten(path))
	case !filepath.IsAbs(path):
		return fmt.Errorf("disk path %q is not absolute", shorten(path))
	}
	return nil
}

func checkSize(n int64) error {
	if n < 0 {
		return fmt.Errorf("size %d is negative", n)
	}
	return nil
}

func checkPeer(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" || len(addr) > maxAddrBytes || hasControl(addr) {
		return fmt.Errorf("peer %q is not HOST:PORT (like node-a:7777)", shorten(addr))
	}
	return nil
}

// checkToken keeps the token itself out of the message: it is a secret.
func checkToken(token string) error {
	if len(token) > maxTokenBytes || hasControl(token) || strings.Contains(token, " ") {
		return errors.New("token is not one that `marsadm join-token` prints: is it complete, on one line?")
	}
	return nil
}

func checkTTL(ttl time.Duration) error {
	if ttl < 0 || ttl > MaxTTL {
		return fmt.Errorf("ttl %v is out of range: more than 0, at most %v", ttl, MaxTTL)
	}
	return nil
}

func checkCondition(s string) error {
	if !slices.Contains(conditions, s) {
		return fmt.Errorf("unknown condition %q (one of %s)", shorten(s), strings.Join(conditions, ", "))
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// shorten bounds foreign text that goes into a message.
func shorten(s string) string {
	const limit = 64
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}

// decodeCommand reads exactly one command and refuses whatever it does not know, so that an option that a newer marsadm sends is never
// silently ignored by an older daemon.
func decodeCommand(data []byte) (Command, error) {
	var c Command
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Command{}, fmt.Errorf("request is not a command that this daemon knows: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Command{}, errors.New("request has something after its command")
	}
	return c, c.Validate()
}

// Verbs returns all verbs, sorted.
func Verbs() []string { return slices.Sorted(maps.Keys(specs)) }
