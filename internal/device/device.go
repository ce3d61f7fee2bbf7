// Package device says what a front end is: something that shows a block.Device to an application. The front ends live in the packages
// below (nbd, loop); a node chooses one by configuration and knows nothing else about it.
package device

import "context"

// FrontEnd is one shown device. It stays usable until Close.
type FrontEnd interface {
	// Path is what the application opens: a device node or a socket.
	Path() string
	// Users names whoever has the device open now ("mounted on /srv", "NBD client pid 4711 (qemu-img)"); empty when nobody has.
	Users() []string
	// Resized tells the front end that the Device has grown.
	Resized() error
	// Close withdraws the device. While it has users it fails with block.ErrBusy, naming them, and stays usable - unless force is
	// asked for through Abort. New users are kept out from the moment Close has seen no users.
	Close(ctx context.Context) error
	// Abort withdraws the device at once; users get I/O errors.
	Abort()
}

// Survivor is a front end whose device can outlive the process that serves it.
type Survivor interface {
	FrontEnd
	// Leave ends serving because the process ends. A device that has users stays, and their IO waits for a successor; it must be found
	// by that as Paused. No request is answered with an error because of that.
	Leave()
}

// Paused is a device that a former process has left behind, by Leave or by dying. Its users' IO waits.
type Paused interface {
	// Resource is the identity of the resource whose device it is.
	Resource() string
	// Users names whoever has the device open now.
	Users() []string
	// Drop gives the device up for ever; its users get I/O errors.
	Drop() error
}
