package knbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// This file is generic netlink as bytes, as far as the nbd driver needs it (include/uapi/linux/netlink.h, genetlink.h). Integers are in the
// machine's order; messages and attributes begin at multiples of four bytes.

const (
	messageHeaderLen = 16 // struct nlmsghdr
	genericHeaderLen = 4  // struct genlmsghdr
	attrHeaderLen    = 4  // struct nlattr

	typeError   = 2    // NLMSG_ERROR: the end of an answer, also of a good one
	typeControl = 0x10 // GENL_ID_CTRL

	flagRequest = 1 // NLM_F_REQUEST
	flagAck     = 4 // NLM_F_ACK

	attrNested   = 1 << 15 // NLA_F_NESTED
	attrTypeMask = 1<<14 - 1
)

// Of the controller, which knows the families.
const (
	controlGetFamily  = 3 // CTRL_CMD_GETFAMILY
	controlFamilyID   = 1 // CTRL_ATTR_FAMILY_ID
	controlFamilyName = 2 // CTRL_ATTR_FAMILY_NAME
	controlMaxAttr    = 5 // CTRL_ATTR_MAXATTR
)

var errNetlink = errors.New("malformed netlink message")

// message is one generic netlink message.
type message struct {
	kind  uint16 // nlmsg_type: a family, or typeError
	seq   uint32
	cmd   uint8
	attrs []byte
	errno syscall.Errno // of a typeError; 0 is success
}

// append appends m as a request that wants an answer.
func (m *message) append(b []byte) []byte {
	begin := len(b)
	b = append(b, make([]byte, messageHeaderLen)...)
	b = append(b, m.cmd, familyVersion, 0, 0)
	b = append(b, m.attrs...)
	h := b[begin:]
	binary.NativeEndian.PutUint32(h[0:], uint32(len(h)))
	binary.NativeEndian.PutUint16(h[4:], m.kind)
	binary.NativeEndian.PutUint16(h[6:], flagRequest|flagAck)
	binary.NativeEndian.PutUint32(h[8:], m.seq)
	return b
}

// parseMessage takes the first message off b.
func parseMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < messageHeaderLen {
		return m, nil, fmt.Errorf("%d bytes are no header: %w", len(b), errNetlink)
	}
	n := binary.NativeEndian.Uint32(b)
	if n < messageHeaderLen || uint64(n) > uint64(len(b)) {
		return m, nil, fmt.Errorf("length %d in %d bytes: %w", n, len(b), errNetlink)
	}
	m.kind, m.seq = binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
	body := b[messageHeaderLen:n]
	rest = b[min(aligned(int(n)), len(b)):]
	if len(body) < genericHeaderLen {
		return m, nil, fmt.Errorf("body of %d bytes: %w", len(body), errNetlink)
	}
	if m.kind == typeError {
		m.errno = syscall.Errno(-int32(binary.NativeEndian.Uint32(body)))
		return m, rest, nil
	}
	m.cmd, m.attrs = body[0], body[genericHeaderLen:]
	return m, rest, nil
}

func aligned(n int) int { return (n + 3) &^ 3 }

// appendAttr appends one attribute.
func appendAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeaderLen+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, aligned(len(data))-len(data))...)
}

func appendUint32(b []byte, kind uint16, v uint32) []byte {
	return appendAttr(b, kind, binary.NativeEndian.AppendUint32(nil, v))
}

func appendUint64(b []byte, kind uint16, v uint64) []byte {
	return appendAttr(b, kind, binary.NativeEndian.AppendUint64(nil, v))
}

// appendString appends a string with the zero byte that the kernel's string attributes end with.
func appendString(b []byte, kind uint16, s string) []byte {
	return appendAttr(b, kind, append([]byte(s), 0))
}

// findAttr returns the value of the first attribute of a kind; nil when there is none. All attributes must be well-formed.
func findAttr(b []byte, kind uint16) (found []byte, err error) {
	for len(b) > 0 {
		if len(b) < attrHeaderLen {
			return nil, fmt.Errorf("%d bytes are no attribute: %w", len(b), errNetlink)
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeaderLen || n > len(b) {
			return nil, fmt.Errorf("attribute of %d bytes in %d: %w", n, len(b), errNetlink)
		}
		if found == nil && binary.NativeEndian.Uint16(b[2:])&attrTypeMask == kind {
			found = b[attrHeaderLen:n:n]
		}
		b = b[min(aligned(n), len(b)):]
	}
	return found, nil
}

// findUint returns an unsigned integer attribute of two or four bytes.
func findUint(b []byte, kind uint16) (uint32, error) {
	v, err := findAttr(b, kind)
	switch {
	case err != nil:
		return 0, err
	case len(v) == 2:
		return uint32(binary.NativeEndian.Uint16(v)), nil
	case len(v) == 4:
		return binary.NativeEndian.Uint32(v), nil
	}
	return 0, fmt.Errorf("attribute %d of %d bytes, want an integer: %w", kind, len(v), errNetlink)
}
