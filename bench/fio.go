package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// job is one fio job; see fio(1) for the arguments.
type job struct {
	row  string
	args []string
	unit string // "IOPS", "MiB/s" or "us" (99th percentile of the completion latency)
}

var jobs = []job{
	{"randwrite 4k QD1", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, "IOPS"},
	{"randwrite 4k QD1 p99", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, "us"},
	{"randwrite 4k QD32", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, "IOPS"},
	{"randwrite 4k QD1 fsync=1", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, "IOPS"},
	{"randwrite 4k QD32 fsync=32", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"}, "IOPS"},
	{"randread 4k QD32", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, "IOPS"},
	{"randrw 70/30 4k QD32", []string{"--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=32"}, "IOPS"},
	{"seqwrite 1M", []string{"--rw=write", "--bs=1m", "--iodepth=4"}, "MiB/s"},
	{"seqread 1M", []string{"--rw=read", "--bs=1m", "--iodepth=4"}, "MiB/s"},
}

// fio runs one job against an NBD socket and returns its figure.
func (b *bench) fio(ctx context.Context, j job, socket string) (float64, error) {
	args := append([]string{"--name=job", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket, "--output-format=json",
		fmt.Sprintf("--size=%d", b.o.size), "--time_based", fmt.Sprintf("--runtime=%d", int(b.o.runtime/time.Second)),
		"--ramp_time=1", "--randrepeat=0", "--norandommap", "--refill_buffers"}, j.args...)
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("fio %v: %w: %s", j.args, err, out)
	}
	return parseFio(out, j.unit)
}

type fioSide struct {
	IOPS float64 `json:"iops"`
	BW   float64 `json:"bw_bytes"`
	Clat struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

func parseFio(out []byte, unit string) (float64, error) {
	var res struct {
		Jobs []struct {
			Read, Write fioSide
			Error       int
		}
	}
	out = out[max(0, bytes.IndexByte(out, '{')):] // notes come before the JSON
	if err := json.Unmarshal(out, &res); err != nil || len(res.Jobs) == 0 {
		return 0, fmt.Errorf("output of fio: %w", err)
	}
	j := res.Jobs[0]
	if j.Error != 0 {
		return 0, fmt.Errorf("fio reports error %d", j.Error)
	}
	switch unit {
	case "IOPS":
		return j.Read.IOPS + j.Write.IOPS, nil
	case "us":
		return j.Write.Clat.Percentile["99.000000"] / 1000, nil
	}
	return (j.Read.BW + j.Write.BW) / (1 << 20), nil
}
