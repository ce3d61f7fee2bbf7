package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
)

const (
	maxFrame   = 64 << 10
	queueDepth = 4096 // frames that wait for one machine; more are lost, as in any switch
)

// network is an Ethernet switch between the machines of a lab. It lives in the lab's own process: no interface of the host takes part,
// and nothing outside can be reached. The last byte of a machine's address is its number.
type network struct {
	dir   string
	ports []*port // machine i is at i-1
	wg    sync.WaitGroup
}

// port is where one machine is plugged in, for the time of one boot after the other.
type port struct {
	listener net.Listener
	queue    chan []byte
	sent     atomic.Int64 // bytes that the machine has sent
	cut      atomic.Bool
}

func newNetwork(dir string, machines int) (*network, error) {
	n := &network{dir: dir}
	for i := range machines {
		l, err := net.Listen("unix", n.socket(i+1))
		if err != nil {
			return nil, errors.Join(err, n.Close())
		}
		p := &port{listener: l, queue: make(chan []byte, queueDepth)}
		n.ports = append(n.ports, p)
		n.wg.Go(func() { n.accept(p) }) // ends with the listener
	}
	return n, nil
}

func (n *network) socket(machine int) string {
	return filepath.Join(n.dir, fmt.Sprintf("net%d", machine))
}

// args are QEMU's for a machine.
func (n *network) args(machine int) []string {
	return []string{
		"-netdev", "stream,id=net,server=off,addr.type=unix,addr.path=" + n.socket(machine),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=52:54:00:4d:52:%02x,romfile=", machine),
	}
}

func (n *network) Close() error {
	var errs []error
	for _, p := range n.ports {
		errs = append(errs, p.listener.Close())
	}
	n.wg.Wait()
	return errors.Join(errs...)
}

// accept serves the machine at a port, one boot after the other.
func (n *network) accept(p *port) {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		gone := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { p.deliver(conn, gone) }) // ends when gone
		n.forward(conn, p)
		close(gone)
		conn.Close()
		wg.Wait()
	}
}

// forward takes frames from a machine until its end. Each has its length before it.
func (n *network) forward(conn net.Conn, from *port) {
	var size [4]byte
	for {
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		length := binary.BigEndian.Uint32(size[:])
		if length < 14 || length > maxFrame {
			return
		}
		frame := make([]byte, 4+length)
		copy(frame, size[:])
		if _, err := io.ReadFull(conn, frame[4:]); err != nil {
			return
		}
		from.sent.Add(int64(length))
		if !from.cut.Load() {
			n.send(frame, from)
		}
	}
}

func (n *network) send(frame []byte, from *port) {
	dst := frame[4:10]
	for i, p := range n.ports {
		if p == from || p.cut.Load() || (dst[0]&1 == 0 && int(dst[5]) != i+1) {
			continue
		}
		select {
		case p.queue <- frame:
		default: // full
		}
	}
}

func (p *port) deliver(conn net.Conn, gone <-chan struct{}) {
	for {
		select {
		case frame := <-p.queue:
			if _, err := conn.Write(frame); err != nil {
				return
			}
		case <-gone:
			return
		}
	}
}
