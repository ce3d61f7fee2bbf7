package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/block"
	"mars/internal/device"
	"mars/internal/history"
	"mars/internal/resource"
	"mars/internal/volume"
)

// replica is an attached disk with its volume, its front ends and the goroutines that work on it.
type replica struct {
	r    *runner
	disk *block.Disk
	vcfg volume.Config
	vol  *volume.Volume // nil while the replica is missing

	ctx  context.Context
	stop context.CancelCauseFunc
	wg   sync.WaitGroup

	leaving  atomic.Bool // the content is about to be thrown away: nobody may count on it
	wish     atomic.Pointer[wish]
	wishKick chan struct{} // for the mover
	fetch    fetcher
	session  sessions
	mover    mover

	mu     sync.Mutex
	fronts []device.FrontEnd
	paused *leftover // what a former process has left behind, until it is shown again or given up; nil: nothing
}

// wish is what the workers go by.
type wish struct {
	in   resource.Input
	plan resource.Plan
}

// openReplica opens the disk at path exclusively and the volume on it. With volume.ErrNoReplica the replica is returned without a volume.
func openReplica(r *runner, path string) (*replica, error) {
	disk, err := block.OpenDisk(path, block.DiskOptions{})
	if err != nil {
		return nil, err
	}
	rep := &replica{r: r, disk: disk, wishKick: make(chan struct{}, 1), paused: r.n.pausedOf(r.id)}
	// Not r.ctx: the workers go on until the front ends have ended, which wait for their work.
	rep.ctx, rep.stop = context.WithCancelCause(context.WithoutCancel(r.ctx))
	rep.vcfg, err = r.n.volumeConfig(r.id, disk)
	if err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	vol, err := volume.Open(rep.vcfg)
	if errors.Is(err, volume.ErrNoReplica) {
		return rep, err
	}
	if err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	rep.startWorkers(vol)
	return rep, nil
}

func (n *Node) volumeConfig(id string, disk *block.Disk) (volume.Config, error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != 16 {
		return volume.Config{}, fmt.Errorf("resource id %q is not 32 hexadecimal digits", id)
	}
	c := volume.Config{
		FS: n.fs, Dir: filepath.Join(n.store.dir, id), Resource: [16]byte(raw), Disk: disk,
		Stamp: n.stamps.next, Pause: n.pause, SegmentSize: n.cfg.SegmentBytes, Reserve: n.store.reserveSpace,
		WritebackLimit: n.cfg.WritebackLimitBytes, StallTimeout: n.cfg.StallTimeout, WriteThrough: !n.cfg.WriteCache,
	}
	return c, nil
}

// pause holds a writer up for d, less when the node stops.
func (n *Node) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-n.ctx.Done():
	case <-t.C:
	}
}

func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func newTimelineID() history.TimelineID {
	var b [8]byte
	for {
		rand.Read(b[:])
		if id := binary.LittleEndian.Uint64(b[:]); id != 0 {
			return history.TimelineID(id)
		}
	}
}

// startWorkers makes vol the replica's volume and starts what works on it; close ends and joins them.
func (rep *replica) startWorkers(vol *volume.Volume) {
	rep.r.mu.Lock()
	rep.vol = vol
	rep.r.mu.Unlock()
	rep.r.n.stamps.observe(vol.Status().EndStamp)
	rep.wg.Go(rep.syncLog)
	rep.wg.Go(rep.move)
	rep.wg.Go(rep.fetchLog)
}

// close withdraws the device, whatever its users say, and ends everything. Unless somebody waits for the device to come back, what is in the log is
// brought onto the disk, as far as that is quick: the operator may want to look at it.
func (rep *replica) close() error {
	awaited := rep.endFronts()
	rep.stop(errClosed)
	rep.session.pause()
	var err error
	if rep.vol != nil {
		if !awaited {
			rep.drain()
		}
		err = rep.vol.Close()
	}
	rep.wg.Wait()
	return errors.Join(err, rep.disk.Close())
}

// drainLimit bounds how long the end of a replica waits for its disk.
const drainLimit = 10 * time.Second

// drain applies what is left of the log. What it does not get done is done at the next start.
func (rep *replica) drain() {
	w := rep.wish.Load()
	if w == nil || !w.plan.Replay {
		return
	}
	for end := time.Now().Add(drainLimit); time.Now().Before(end); {
		worked, err := rep.vol.ApplyStep()
		if err != nil {
			rep.r.n.log.Warn("not all of the log is on the disk", "res", rep.r.name(), "err", err)
		}
		if err != nil || !worked {
			return
		}
	}
	rep.r.n.log.Info("not all of the log is on the disk; the rest follows at the next start", "res", rep.r.name(), "bytes", rep.vol.Unapplied())
}

// diskSize looks at the disk as it is now. The error says that it cannot be trusted any more.
func (rep *replica) diskSize() (int64, error) { return rep.disk.Rescan() }

// follow hands a new decision to the workers. The runner's lock is held.
func (rep *replica) follow(in resource.Input, plan resource.Plan) {
	old := rep.wish.Swap(&wish{in, plan})
	if old == nil || old.plan.Fetch != plan.Fetch || old.plan.Sync != plan.Sync || old.plan.Replay != plan.Replay {
		rep.fetch.retarget(plan.Fetch)
	}
	select {
	case rep.wishKick <- struct{}{}:
	default:
	}
}

// describe adds what the workers know.
func (rep *replica) describe(l *resource.Local) {
	l.FetchFrom, l.FetchErr, l.Lacking, l.PrimaryEnd = rep.fetch.state()
	if w := rep.wish.Load(); w != nil {
		l.Replaying = w.in.Switches.Replay || rep.mover.applying.Load()
		l.Orphan = slices.Contains(l.Lacking, w.plan.Fetch) // nobody else could be asked
	}
	l.SyncErr = rep.mover.syncErr()
}
