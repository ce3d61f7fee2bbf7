package sim

import (
	"encoding/hex"
	"fmt"
	"time"

	"mars/internal/block"
	"mars/internal/block/blocktest"
)

// World is one simulated cluster.
type World struct {
	opt     Options
	rng     streams
	swarm   swarm
	now     time.Duration
	agenda  agenda
	seq     uint64
	events  int
	trace   trace
	stats   Stats
	failure *Failure
	phase   int // 1: faults; 2: repaired; 3: with the operator's help

	nodeCount int
	slots     int // how many disks each host has, and names of resources there are
	nodes     []*node
	resources []*simResource
	net       *network
	logLimit  int64
	chaosTime time.Duration
	built     bool // all resources are created
	gaveUp    bool // log was deleted that a member needs, for want of space
	silent    bool // a node was removed, or has left without a word or after its membership had ended: what only it knew is lost
}

// simResource is one replicated device.
type simResource struct {
	id       string
	name     string // which an earlier resource may have had
	index    int
	slot     int // of the disks it is on
	raw      [16]byte
	diskSize int64
	size     int64
	shape    shape
	truth    *truth
	app      *app
	forced   []int // by node: activations by force that an operator has asked for
	maker    *node // who makes the first replica, while it does
	cluster  string
	born     bool // the metadata that make it known are durable somewhere
	doomed   bool // an operator has said that it shall be deleted
	deleted  bool // and was told that it is
}

// shape is the configuration of a resource.
type shape struct {
	segment, writeback, window int64
	chunk                      int
	writeThrough               bool
	think                      time.Duration
}

func (r *simResource) chunk() []byte { return make([]byte, r.shape.chunk) }

func newWorld(o Options) *World {
	w := &World{opt: o, rng: newStreams(o.Seed), phase: 1}
	w.swarm = newSwarm(&w.rng, o.Off)
	w.nodeCount = [...]int{1, 2, 2, 2, 3, 3, 3, 3, 4, 5}[w.rng.shape.IntN(10)]
	for i := range [...]int{1, 1, 1, 2, 3}[w.rng.shape.IntN(5)] {
		w.resources = append(w.resources, w.newResource(i))
	}
	w.slots = len(w.resources)
	w.logLimit = int64(len(w.resources)) * (2 << 20)
	if w.swarm["log-full"] {
		w.logLimit = int64(len(w.resources)) * (256<<10 + w.rng.shape.Int64N(256<<10))
	}
	for i := range w.nodeCount {
		w.nodes = append(w.nodes, newNode(w, i))
	}
	w.net = newNetwork(w)
	for _, r := range w.resources {
		w.equip(r)
	}
	w.chaosTime = between(w.rng.shape, 30*time.Second, 120*time.Second)
	if o.Phase1 > 0 {
		w.chaosTime = o.Phase1
	}
	return w
}

func (w *World) newResource(i int) *simResource {
	rng := w.rng.shape
	r := &simResource{index: len(w.resources), slot: i, cluster: firstCluster, name: fmt.Sprintf("r%d", i)}
	for k := range r.raw {
		r.raw[k] = byte(w.rng.id.Uint32())
	}
	r.id = hex.EncodeToString(r.raw[:4])
	sectors := 64 + rng.Int64N(448)
	if chance(rng, 2) {
		sectors = 128 * (1 + rng.Int64N(3))
	}
	r.size = sectors * block.SectorSize
	r.diskSize = r.size + rng.Int64N(128)*block.SectorSize
	r.shape = shape{
		segment: 32<<10 + rng.Int64N(128)*1024, writeback: 192<<10 + rng.Int64N(512<<10), window: 4<<10 + rng.Int64N(128<<10),
		chunk: 80<<10 + rng.IntN(100<<10), writeThrough: chance(rng, 5), think: between(rng, 20*time.Millisecond, 800*time.Millisecond),
	}
	return r
}

// soil fills a disk with what somebody has left there.
func (r *simResource) soil(n *node, d *blocktest.Disk) {
	w := n.w
	for i := int64(0); i < r.diskSize/block.SectorSize; i += 4 {
		if chance(w.rng.shape, 3) {
			continue
		}
		k := min(4, r.diskSize/block.SectorSize-i)
		l := label{uint32(r.index), foreign + uint64(n.index)*1000 + uint64(i)}
		if err := d.WriteAt(payload(l, i*block.SectorSize, k*block.SectorSize), i*block.SectorSize, 0); err != nil {
			panic(err)
		}
	}
	if err := d.Flush(); err != nil {
		panic(err)
	}
}

// node returns the host that is the node with that id now, nil if none is.
func (w *World) node(id string) *node {
	for _, n := range w.nodes {
		if n.id == id && n.cluster != "" {
			return n
		}
	}
	return nil
}

// equip gives a new resource what belongs to it on every node.
func (w *World) equip(r *simResource) {
	r.app = newApp(w, r)
	r.forced = make([]int, w.nodeCount)
	for _, n := range w.nodes {
		n.reps = append(n.reps, nil)
		n.damaged = append(n.damaged, false)
		n.must = append(n.must, promise{})
	}
}

func (w *World) canary(name string) bool { return w.opt.Canary == name }

func (w *World) shape() string {
	s := fmt.Sprintf("%d nodes, %d resources, chaos for %v, log limit %d", w.nodeCount, len(w.resources), w.chaosTime, w.logLimit)
	for _, r := range w.resources {
		s += fmt.Sprintf("\n%s: %d of %d bytes, %+v", r.id, r.size, r.diskSize, r.shape)
	}
	return s
}

// build starts the nodes and makes the resources, each on some node, with members joining soon.
func (w *World) build() {
	for _, n := range w.nodes {
		if err := n.fs.MkdirAll("mars"); err != nil {
			panic(err)
		}
	}
	w.found()
	for _, n := range w.nodes {
		n.start()
	}
	for _, res := range w.resources {
		n := w.nodes[w.rng.shape.IntN(len(w.nodes))]
		w.create(n, res)
		res.app.run()
		for _, other := range w.nodes {
			if other != n && !chance(w.rng.shape, 4) {
				w.after(between(w.rng.shape, time.Second, 10*time.Second), func() { w.issue(other, res, "join-resource") })
			}
		}
	}
	w.built = true
	w.plagues()
	w.operators()
	w.watch()
}

// create is create-resource before anything can fail.
func (w *World) create(n *node, res *simResource) {
	n.quiet++
	if err := n.makeReplica(res); err != nil {
		panic(err)
	}
	n.quiet--
	n.run(func() {
		if err := n.meta.batch(n.birth(res)...); err != nil {
			panic(err)
		}
		res.born = true
	})
	w.logf("%s: creates %s", n.id, res.id)
}

// chaos is the first phase.
func (w *World) chaos() {
	w.runUntil(w.chaosTime, nil)
}
