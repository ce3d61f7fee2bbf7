package vm

import "testing"

// front is a way in which a primary shows its device.
type front struct {
	name     string   // as marsd's --device takes it
	modules  []string // of the kernel, that it needs
	outlives bool     // the device, and who has it open, survive a restart of marsd
	fixed    bool     // this kernel cannot change the size of the device
}

// fronts are all there are: every scenario about devices runs on each of them.
var fronts = []front{
	{name: "loop", modules: []string{"loop"}},
	{name: "nbd", modules: []string{"nbd"}, outlives: true},
	{name: "ublk", modules: []string{"ublk_drv"}, outlives: true, fixed: true},
}

func onEachFront(t *testing.T, scenario func(t *testing.T, f front)) {
	t.Helper()
	for _, f := range fronts {
		t.Run(f.name, func(t *testing.T) { scenario(t, f) })
	}
}
