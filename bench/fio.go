package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// job is one thing to do with a target; one run yields all its rows.
type job struct {
	name string
	unit string   // of the rate: "IOPS", "MiB/s" or "tx/s"
	args []string // of fio(1); none: the job is sqlite
	lat  bool     // percentiles of the latency of writes are rows, too
	cpu  bool     // CPU time per request is a row, too
}

type jobList []job

// percentiles that a job with lat reports: the end of the row's name, and fio's key.
var percentiles = []struct{ name, key string }{{"p50", "50.000000"}, {"p99", "99.000000"}, {"p99.9", "99.900000"}}

const peakMemory = "memory, peak of the daemon"

func (j job) names() []string {
	names := []string{j.name}
	if j.lat {
		for _, p := range percentiles {
			names = append(names, j.name+" "+p.name)
		}
	}
	if j.cpu {
		names = append(names, j.name+" CPU")
	}
	return names
}

func (l jobList) names() []string {
	var names []string
	for _, j := range l {
		names = append(names, j.names()...)
	}
	return names
}

// of returns the jobs that are wanted.
func (l jobList) of(b *bench) jobList {
	return slices.DeleteFunc(slices.Clone(l), func(j job) bool { return !b.wanted(j.names()...) })
}

// hotSet is a region that is written over and over.
const hotSet = "--size=4m"

var blockJobs = jobList{
	{name: "randwrite 4k QD1", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, lat: true, cpu: true},
	{name: "randwrite 4k QD32", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, cpu: true},
	{name: "randwrite 4k QD1 fsync=1", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, cpu: true},
	{name: "randwrite 4k QD32 fsync=32", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"}, cpu: true},
	{name: "randwrite 4k QD32 in 4 MiB", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", hotSet}, cpu: true},
	{name: "randread 4k QD32", unit: "IOPS", args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, cpu: true},
	{name: "randrw 70/30 4k QD32", unit: "IOPS", args: []string{"--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=32"}, cpu: true},
	{name: "4 clients randwrite 4k QD8", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=8", "--numjobs=4"}, cpu: true},
	{name: "4 clients randread 4k QD8", unit: "IOPS", args: []string{"--rw=randread", "--bs=4k", "--iodepth=8", "--numjobs=4"}, cpu: true},
	{name: "seqwrite 1M", unit: "MiB/s", args: []string{"--rw=write", "--bs=1m", "--iodepth=4"}, cpu: true},
	{name: "seqread 1M", unit: "MiB/s", args: []string{"--rw=read", "--bs=1m", "--iodepth=4"}, cpu: true},
}

// manyJobs run on all of many resources at once.
var manyJobs = jobList{
	{name: "20 resources randwrite 4k QD4", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=4"}, cpu: true},
}

var writeJob = job{unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}}

// figures are what one run of fio yields.
type figures struct {
	rate float64 // in the job's unit
	ios  float64
	lat  map[string]float64 // of writes, in ns, by fio's key of the percentile
}

// fio runs a job against all devices of a target at once for the time of a job.
func (b *bench) fio(ctx context.Context, j job, t *target) (figures, error) {
	return fio(ctx, j, t, "--time_based", fmt.Sprintf("--runtime=%d", int(b.o.runtime/time.Second)))
}

// fio runs a job until the limit that extra arguments say.
func fio(ctx context.Context, j job, t *target, extra ...string) (figures, error) {
	args := slices.Concat([]string{"--output-format=json", "--name=global", "--group_reporting", "--thread", "--randrepeat=0", "--norandommap",
		fmt.Sprintf("--size=%d", t.size)}, j.args, extra, t.fioArgs())
	out, err := command(ctx, "fio", args...)
	if err != nil {
		return figures{}, fmt.Errorf("%s: %s: %w", t.name, j.name, err)
	}
	f, err := parseFio(out, j.unit)
	if err != nil {
		return f, fmt.Errorf("%s: %s: %w", t.name, j.name, err)
	}
	return f, nil
}

// fioArgs name what to open, one fio job for each.
func (t *target) fioArgs() []string {
	if t.device != "" {
		return []string{"--name=job", "--ioengine=libaio", "--direct=1", "--filename=" + t.device}
	}
	var args []string
	for _, s := range t.sockets {
		args = append(args, "--name=job", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+s)
	}
	return args
}

type fioSide struct {
	IOPS float64 `json:"iops"`
	BW   float64 `json:"bw_bytes"`
	IOs  float64 `json:"total_ios"`
	Clat struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

func parseFio(out []byte, unit string) (figures, error) {
	var res struct {
		Jobs []struct {
			Read, Write fioSide
			Error       int
		}
	}
	out = out[max(0, bytes.IndexByte(out, '{')):] // notes come before the JSON
	if err := json.Unmarshal(out, &res); err != nil {
		return figures{}, fmt.Errorf("output of fio: %w", err)
	}
	if len(res.Jobs) != 1 {
		return figures{}, fmt.Errorf("output of fio has %d groups", len(res.Jobs))
	}
	j := res.Jobs[0]
	if j.Error != 0 {
		return figures{}, fmt.Errorf("fio reports error %d", j.Error)
	}
	f := figures{rate: j.Read.IOPS + j.Write.IOPS, ios: j.Read.IOs + j.Write.IOs, lat: j.Write.Clat.Percentile}
	if unit == "MiB/s" {
		f.rate = (j.Read.BW + j.Write.BW) / (1 << 20)
	}
	if f.ios == 0 {
		return f, errors.New("fio has done nothing")
	}
	return f, nil
}

// record makes rows of what a job has yielded.
func (b *bench) record(j job, target string, f figures) {
	b.add(j.name, j.unit, target, f.rate)
	if !j.lat {
		return
	}
	for _, p := range percentiles {
		b.add(j.name+" "+p.name, "us", target, f.lat[p.key]/1000)
	}
}
