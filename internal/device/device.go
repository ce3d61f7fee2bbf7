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
