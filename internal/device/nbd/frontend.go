package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"mars/internal/block"
	"mars/internal/device"
)

// FrontEnd shows a Device as a Unix socket that NBD clients of this host connect to.
type FrontEnd struct {
	path   string
	server *Server
	served sync.WaitGroup
}

var _ device.FrontEnd = (*FrontEnd)(nil)

// Show creates the socket at path with mode 0600 and serves cfg there. A socket that a dead daemon has left is replaced; if one
// is still served, Show fails with block.ErrBusy. The directory must exist.
func Show(cfg Config, path string) (*FrontEnd, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("NBD socket: %w", err)
	}
	l, err := listenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("NBD socket: %w", err)
	}
	f := &FrontEnd{path: path, server: New(cfg)}
	f.served.Go(func() { // ends with Close or Abort of the server
		if err := f.server.Serve(l); err != nil {
			f.server.cfg.Log.Error("NBD socket no longer served", "path", path, "err", err)
		}
	})
	return f, nil
}

// removeStale removes a socket that nobody listens on. It removes nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way: %w", path, fs.ErrExist)
	}
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
		return fmt.Errorf("%s is served already: %w", path, block.ErrBusy)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// listenPrivate creates the socket with mode 0600 from the start: on Linux, bind takes over the mode of the unbound socket.
func listenPrivate(path string) (net.Listener, error) {
	cfg := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		ctlErr := raw.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(ctlErr, err)
	}}
	return cfg.Listen(context.Background(), "unix", path)
}

// Path is the path of the socket.
func (f *FrontEnd) Path() string { return f.path }

// Users names the clients in the transmission phase; one that merely asks what there is, is none.
func (f *FrontEnd) Users() []string { return usersOf(f.server) }

func usersOf(s *Server) []string {
	users := s.Clients()
	for i, u := range users {
		users[i] = "NBD client " + u
	}
	return users
}

// Resized does nothing: requests may use the new size at once, and clients learn it when they connect.
func (f *FrontEnd) Resized() error { return nil }

// Close withdraws the socket and removes it, unless there are users: then it fails with block.ErrBusy, naming them.
func (f *FrontEnd) Close(ctx context.Context) error {
	if err := f.server.Close(ctx); err != nil {
		return err
	}
	f.served.Wait()
	return nil
}

// Abort withdraws the socket and removes it at once; clients are cut off. It waits for calls of the Device that are under way.
func (f *FrontEnd) Abort() {
	f.server.Abort()
	f.served.Wait()
}
