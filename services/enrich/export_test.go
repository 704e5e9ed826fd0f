package enrich

// MendFirst is a time that tests make longer.
var MendFirst = &mendFirst

// CatchUp is what Run does first.
var CatchUp = catchUp

// SourceOf is what a shared store is mended from, and Tend what mends it beside the flow.
var (
	SourceOf = sourceOf
	Tend     = tend
)
