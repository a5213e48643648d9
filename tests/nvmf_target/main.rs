//! The NVMe/TCP target from outside: a host that says exactly what a test wants, over real sockets.

mod admin;
mod io;
mod peer;
mod wire;
