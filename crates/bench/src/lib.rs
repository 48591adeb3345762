//! Benchmarks of the work that the stages do: `benches/work.rs`, and the same work in Python: `peer.py`. `cargo xtask bench` runs both and
//! sets them against each other.
