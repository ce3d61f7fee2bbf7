//go:build !race

package nbd

const raceDetector = false
