// Package e2e tests the whole system with real daemons: each test builds a small world of nodes on the loopback interface, does to it what
// operators, applications and disasters do, and looks at it only through marsadm, the status on the control socket, the devices and the disks.
//
// Every node is reached by the others through a proxy that can damage the network (package faultnet). What the application writes says
// in each sector which write it was (package stamp), so that a disk image can be proved to be a state that the volume really had.
//
// TestSoak does all that at random for as long as it is told. Clocks are set wrong in a marsd that is built with another package time (clock_test.go).
//
// As root the tests run in a mount namespace of their own.
//
// Environment: MARS_SOAK_DURATION and MARS_TEST_SEED are for TestSoak. MARS_TEST_REQUIRE=all makes a skipped test a failure. MARS_E2E_RACE=1 builds the daemons with the race detector.
// MARS_E2E_KEEP=DIR keeps logs and states of failed tests there (default: a directory below the temporary one, named in the output).
package e2e
