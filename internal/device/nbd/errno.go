package nbd

import (
	"errors"

	"mars/internal/block"
)

// errno is an error number of the protocol; 0 is success. The values are those of Linux.
type errno uint32

const (
	errnoPerm     errno = 1
	errnoIO       errno = 5
	errnoInvalid  errno = 22
	errnoNoSpace  errno = 28
	errnoOverflow errno = 75
	errnoNotSup   errno = 95
	errnoShutdown errno = 108
)

// errnos says how an error is told to the client; anything else is an I/O error.
var errnos = []struct {
	err  error
	code errno
}{
	{block.ErrAlign, errnoInvalid},
	{block.ErrNoSpace, errnoNoSpace},
	{block.ErrReadOnly, errnoPerm},
	{block.ErrNotFast, errnoNotSup},
	{block.ErrClosed, errnoShutdown},
	{errStopped, errnoShutdown},
	{errUnknownCommand, errnoInvalid},
	{errBadFlags, errnoInvalid},
	{errZeroLength, errnoInvalid},
	{errFlushRange, errnoInvalid},
	{errTooLarge, errnoInvalid},
	{errTooLargeDF, errnoOverflow},
	{errNoContext, errnoInvalid},
	{errBeyondRead, errnoInvalid},
}

// errnoOf translates the outcome of a command.
func errnoOf(err error, cmd uint16) errno {
	if err == nil {
		return 0
	}
	if errors.Is(err, block.ErrRange) {
		return errnoOfRange(cmd)
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	return errnoIO
}

// errnoOfRange is for a Device that finds a range beyond its end although it was checked before.
func errnoOfRange(cmd uint16) errno {
	switch cmd {
	case cmdWrite, cmdWriteZeroes, cmdTrim:
		return errnoNoSpace
	}
	return errnoInvalid
}
