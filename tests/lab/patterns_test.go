package lab_test

import "regexp"

var (
	number      = regexp.MustCompile(`(\d+)`)
	child       = regexp.MustCompile(`child (\d+)`)
	never       = regexp.MustCompile(`never`)
	missingFile = regexp.MustCompile(`missing\.0 not found`)
)
