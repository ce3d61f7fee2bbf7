package loop

import (
	"encoding/json"
	"strings"
	"testing"
)

// BenchmarkFio reports what an application gets from a loop device over a Device in memory, that is the cost of the front end itself.
// One iteration is one fio run of three seconds: use -benchtime=1x.
func BenchmarkFio(b *testing.B) {
	need(b, "fio")
	const size = 512 * mib
	for _, c := range []struct{ name, rw, bs, depth string }{
		{"randread4k-qd1", "randread", "4k", "1"},
		{"randwrite4k-qd1", "randwrite", "4k", "1"},
		{"randread4k-qd32", "randread", "4k", "32"},
		{"randwrite4k-qd32", "randwrite", "4k", "32"},
		{"read1m-qd8", "read", "1m", "8"},
		{"write1m-qd8", "write", "1m", "8"},
	} {
		b.Run(c.name, func(b *testing.B) {
			r, d := newRig(b), newMemDev(size, size)
			d.touch()
			f := r.open("vol", d)
			for b.Loop() {
				out := run(b, "fio", "--name=v", "--filename="+f.Path(), "--direct=1", "--ioengine=libaio", "--rw="+c.rw, "--bs="+c.bs,
					"--iodepth="+c.depth, "--time_based", "--runtime=3", "--ramp_time=1", "--size=512M", "--output-format=json")
				reportFio(b, out)
			}
			r.close(f)
		})
	}
}

// touch makes all memory resident.
func (d *memDev) touch() {
	for i := 0; i < len(d.data); i += 4096 {
		d.data[i] = 1
	}
}

func reportFio(b *testing.B, out string) {
	b.Helper()
	type dir struct {
		IOPS float64 `json:"iops"`
		BW   float64 `json:"bw_bytes"`
		Lat  struct {
			Mean float64 `json:"mean"`
		} `json:"clat_ns"`
	}
	var res struct {
		Jobs []struct{ Read, Write dir } `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &res); err != nil || len(res.Jobs) != 1 {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	j := res.Jobs[0]
	b.ReportMetric(j.Read.IOPS+j.Write.IOPS, "iops")
	b.ReportMetric((j.Read.BW+j.Write.BW)/mib, "MiB/s")
	b.ReportMetric((j.Read.Lat.Mean+j.Write.Lat.Mean)/1000, "µs")
	b.ReportMetric(0, "ns/op")
}
