package nbd

import (
	"context"
	"errors"
	"net/url"

	"mars/internal/block"
	"mars/internal/device"
)

// Export shows a Device over TCP as one of the exports of a Hub.
type Export struct {
	hub    *Hub
	name   string
	server *Server
}

var _ device.FrontEnd = (*Export)(nil)

// Path is the URI of the export: nbd://HOST:PORT/NAME, with nbds if TLS is spoken.
func (e *Export) Path() string { return e.hub.base + "/" + url.PathEscape(e.name) }

// Users names the clients in the transmission phase; one that merely asks what there is, is none.
func (e *Export) Users() []string { return usersOf(e.server) }

// Resized does nothing: requests may use the new size at once, and clients learn it when they connect.
func (e *Export) Resized() error { return nil }

// Close withdraws the export, unless there are users: then it fails with block.ErrBusy, naming them.
func (e *Export) Close(ctx context.Context) error {
	err := e.server.Close(ctx)
	if !errors.Is(err, block.ErrBusy) {
		e.hub.withdraw(e.name, e.server)
	}
	return err
}

// Abort withdraws the export at once; its clients are cut off. It waits for calls of the Device that are under way.
func (e *Export) Abort() {
	e.hub.withdraw(e.name, e.server)
	e.server.Abort()
}
