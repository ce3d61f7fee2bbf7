package node

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"mars/internal/config"
	"mars/internal/vfs"
)

// DropDevices gives up all devices that former processes have left in cfg.Dir, for an operator who is not going to start another marsd: who waits for
// them gets errors, and can be killed. It refuses while a marsd is there.
func DropDevices(cfg config.Config, out io.Writer, log *slog.Logger) error {
	lock, err := vfs.Lock(filepath.Join(cfg.Dir, "marsd.lock"))
	if err != nil {
		return fmt.Errorf("a marsd works in %s: %w", cfg.Dir, err)
	}
	var errs []error
	for _, l := range leftovers(cfg, log) {
		users := cmp.Or(strings.Join(l.Users(), ", "), "nobody")
		err := l.Drop()
		if err == nil {
			_, err = fmt.Fprintf(out, "device of resource %s given up; it was used by %s\n", l.Resource(), users)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, lock.Close())...)
}
