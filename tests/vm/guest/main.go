// Guest is the init of a virtual machine in the lab, and its agent: it finds the root file system, makes it writable in memory, names the
// node and then runs what the lab asks for. There is no other service in the machine, not even udev.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const agentArg = "agent"

func main() {
	if len(os.Args) > 1 && os.Args[1] == agentArg {
		fmt.Fprintln(os.Stderr, "agent:", agent())
		os.Exit(1)
	}
	if err := boot(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		powerOff()
	}
	serve()
}

// serve is process 1 after boot: it starts the agent, buries the orphans, and ends the machine with the agent.
func serve() {
	if limit := param("deadline"); limit != "" {
		after, err := time.ParseDuration(limit)
		if err == nil {
			time.AfterFunc(after, powerOff) // whatever happens to the lab, the machine ends
		}
	}
	cmd := exec.Command("/host/init", agentArg)
	cmd.Dir, cmd.Env, cmd.Stderr = "/root", environ(), os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		powerOff()
	}
	for {
		pid, err := syscall.Wait4(-1, nil, 0, nil)
		if pid == cmd.Process.Pid || err == syscall.ECHILD {
			powerOff()
		}
	}
}

func powerOff() {
	unix.Sync()
	fmt.Fprintln(os.Stderr, "init: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}
