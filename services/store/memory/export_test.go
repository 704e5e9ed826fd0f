package memory

// Open is OpenFeatures with another number of events that tails hold.
var Open = open
