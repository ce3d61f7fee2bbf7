//go:build race

package ublk

const raceDetector = true
