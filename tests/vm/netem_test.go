package vm

import (
	"fmt"
	"testing"
	"time"

	"mars/internal/control"
	"mars/tests/vm/lab"
)

// badLine is 80 ms there and back, and one packet in a hundred is lost in each direction.
const badLine = "tc qdisc replace dev eth0 root netem delay 40ms loss 1% limit 20000"

// TestLongLossyLine: over a bad line the log comes through at a rate that is recorded; an application that writes at half of that rate is followed
// closely, the secondary is consistent all the time, and in the end both have the same. The kernel's congestion control decides how fast it is.
func TestLongLossyLine(t *testing.T) {
	long(t)
	for _, congestion := range []string{"cubic", "bbr"} {
		t.Run(congestion, func(t *testing.T) { longLossyLine(t, congestion) })
	}
}

func longLossyLine(t *testing.T, congestion string) {
	w := newWorld(t, 12*time.Minute, lab.Config{Machines: 2, Disks: nodeDisks})
	for _, x := range w.nodes {
		x.sh("modprobe -a sch_netem tcp_%s; echo %s >/proc/sys/net/ipv4/tcp_congestion_control", congestion, congestion)
	}
	a, b := pair(w, fronts[0])
	for _, x := range w.nodes {
		x.sh(badLine)
	}
	t.Logf("the line: %s", a.sh("ping -q -c 20 -i 0.2 %s | tail -n 2", b.Name))

	const burst = 6 * mib
	start := time.Now()
	a.sh("dd if=/dev/urandom of=%s bs=64k count=%d oflag=direct status=none", device, burst>>16)
	b.follows(a)
	rate := float64(burst) / time.Since(start).Seconds()
	t.Logf("%s: the log comes through at %.0f KiB/s", congestion, rate/1024)

	const seconds = 40
	half := int(rate / 2 / 4096) // writes of 4 KiB per second
	out := a.sh("fio --name=app --filename=%s --rw=randwrite --bs=4k --direct=1 --rate_iops=%d --time_based --runtime=%d --output-format=terse | cut -d';' -f 48-49",
		device, half, seconds)
	st, err := b.status()
	if err != nil {
		t.Fatal(err)
	}
	m := b.self(st)
	t.Logf("%s: an application that writes %d KiB/s (fio says KiB/s;IOPS: %s) is %.1f s and %d KiB ahead of the secondary", congestion, half*4, out, m.LagSeconds, m.LagBytes/1024)
	if most := 10.0; m.LagSeconds > most {
		t.Errorf("the secondary is %.1f s behind, more than %.0f s", m.LagSeconds, most)
	}
	if !m.Consistent {
		t.Errorf("the secondary is %s", m.DiskState)
	}
	b.follows(a)
	b.awaitSelf("it is up to date", func(m control.Member) bool { return m.DiskState == control.DiskUpToDate })
	sum := "md5sum <%s"
	if p, s := a.sh(fmt.Sprintf(sum, device)), b.sh(fmt.Sprintf(sum, "/dev/lab/disk")); p != s {
		t.Errorf("the primary's device has %s, the secondary's disk %s", p, s)
	}
}
