package app

import "time"

// Adopt takes over an offset as if the broker had told it on a way of trip: no broker can be made to lie about its time.
func (c *Clock) Adopt(offset, trip time.Duration) {
	c.begin()
	c.adopt(sample{offset, trip})
}

// Passing has the time carried on by another clock than this machine's.
func (c *Clock) Passing(read func() time.Time) *Clock {
	c.passing = read
	return c
}
