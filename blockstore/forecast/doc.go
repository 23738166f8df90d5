// Package forecast predicts from real data what a store would take with other settings: the bytes of chunks after dedup and compression, and how many chunks an index would hold.
//
// It cuts and hashes all data as each setting would and keeps, of each setting, the chunks whose hash lies below a threshold, with how often they came. The threshold is halved whenever these are too many, so that memory is
// bounded whatever the size of the data: distinct sampling, as in P. Gibbons, "Distinct Sampling for Highly-Accurate Answers to Distinct Values Queries and Event Reports", VLDB 2001; D. Harnik et al., "Estimating Deduplication
// Ratios in Large Data Sets", MSST 2012, say why sampling places instead of hashes does not work. The compression ratio is that of a sample of frames that begin with a new chunk. Errors are computed from how far sixteen
// parts of the sample, by other bits of the hash, are from each other.
//
// It reads nothing by itself, writes nothing, and starts no goroutine.
package forecast
