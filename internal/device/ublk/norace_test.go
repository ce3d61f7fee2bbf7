//go:build !race

package ublk

const raceDetector = false
