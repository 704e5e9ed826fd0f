package enrich

// CatchUp is what Run does first.
var CatchUp = catchUp
