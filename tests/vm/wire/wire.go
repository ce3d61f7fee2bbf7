// Package wire is what the lab and the agent in a virtual machine say to each other: JSON values, one after the other, over a serial port.
package wire

// Port is the name of the serial port.
const Port = "mars.agent"

// Request asks the agent for one thing.
type Request struct {
	ID     int    // of the job, chosen by the lab, never used twice
	Script string `json:",omitempty"` // start bash on this
	Stdin  bool   `json:",omitempty"` // with Script: it gets Input of later requests; others read nothing
	Input  []byte `json:",omitempty"` // for that job, which has to read it soon: the agent does nothing else meanwhile
	Kill   bool   `json:",omitempty"` // end that job, and what it has started
	Now    int64  `json:",omitempty"` // set the clock: nanoseconds since 1970
}

// Reply is a piece of output of a job, or its end. The first reply after boot is neither: it says that the agent is ready.
type Reply struct {
	ID     int
	Stdout []byte `json:",omitempty"`
	Stderr []byte `json:",omitempty"`
	Exit   *int   `json:",omitempty"` // exit status, 128 plus the signal when one has ended it; nothing follows
}
