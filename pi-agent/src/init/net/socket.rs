//! A socket on one interface that has no address yet: whole IP packets, to everybody there.
#![expect(unsafe_code, reason = "the address of a packet socket, which rustix has not, is laid out here")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth};

/// `struct sockaddr_ll` of linux/if_packet.h.
#[repr(C)]
struct Place {
    family: u16,
    protocol: u16,
    interface: i32,
    kind: u16,
    packet: u8,
    length: u8,
    address: [u8; 8],
}

// SAFETY: the pointer is to a whole `sockaddr_ll`, which is valid for packet sockets.
unsafe impl SocketAddrArg for Place {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}

/// IPv4 on one interface, without its stack.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    interface: i32,
}

impl Socket {
    /// On the interface of this number.
    ///
    /// # Errors
    /// The kernel's: it is not permitted, or the kernel has no CONFIG_PACKET.
    pub fn open(interface: i32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(eth::IP))?;
        let socket = Self { fd, interface };
        rustix::net::bind(&socket.fd, &socket.everybody())?;
        Ok(socket)
    }

    fn everybody(&self) -> Place {
        Place {
            family: AddressFamily::PACKET.as_raw(),
            protocol: eth::IP.as_raw().get() as u16,
            interface: self.interface,
            kind: 0,
            packet: 0,
            length: 6,
            address: [255, 255, 255, 255, 255, 255, 0, 0],
        }
    }

    /// Sends an IP packet to everybody.
    ///
    /// # Errors
    /// The kernel's: the interface is down, say.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        rustix::net::sendto(&self.fd, packet, SendFlags::empty(), &self.everybody())?;
        Ok(())
    }

    /// Takes the next IP packet; `None`: there is none yet.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let (length, _) = rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()).ok()?;
        buffer.get(..length)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
