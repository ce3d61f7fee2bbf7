// Package vm tests MARS in virtual machines with Debian's kernel (package lab): the devices as the kernel shows them, with file systems and LVM
// on top and below, on a bad network, and when the power goes. See README.md.
//
// A plain go test runs the smoke test in one machine only. Environment: MARS_VM=all runs everything. MARS_TEST_REQUIRE=all makes a
// skip for want of QEMU or of the image a failure. MARS_TEST_SEED chooses what is random, MARS_VM_ROUNDS how
// often the power goes. MARS_VM_KEEP=DIR keeps disks and consoles there.
package vm
