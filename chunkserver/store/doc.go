// Package store keeps the chunks of one chunkserver in one directory.
package store
