//! Booting over the network: boot folders, DHCP and TFTP in network namespaces, with clients and servers that
//! others wrote.

#![allow(unused_attributes, reason = "a machine may lack two things that a test needs")]

mod agent_network; // the agent's own DHCP, with servers of others
mod boot; // the boot folder; DHCP and TFTP in network namespaces
mod boot_image; // the folder as one signed file, read and verified by programs of others
mod exhaust; // a host that takes all addresses
mod field; // narrow ways, late interfaces, other servers, relays, UEFI
mod from_image; // kernel and modules out of an image, and a folder for each
mod http_boot; // the signed file over HTTP, by curl and by clients that mean no good
mod pxe; // the proxy with iPXE and behind a relay; doctor beside other servers
mod room; // a room of Pis that is switched on
mod storm; // more Pis than are served at once
mod tftp; // also with clients that others wrote
