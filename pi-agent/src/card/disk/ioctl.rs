//! The few requests to the kernel about disks that no crate has in safe form.
#![expect(
    unsafe_code,
    reason = "ioctl numbers and their argument types are promised to rustix here, from linux/fs.h, linux/blkpg.h, linux/loop.h and fs/ext4/ext4.h"
)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, NoArg, Opcode, Setter, ioctl, opcode};

const BLKROGET: Opcode = opcode::none(0x12, 94);
const BLKRRPART: Opcode = opcode::none(0x12, 95);
const BLKFLSBUF: Opcode = opcode::none(0x12, 97);
const BLKSSZGET: Opcode = opcode::none(0x12, 104);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);
const BLKPG: Opcode = opcode::none(0x12, 105);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

/// The size of a block device, in bytes.
pub(super) fn size(device: &File) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one u64.
    Ok(unsafe { ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }?)
}

/// The size of its sectors, in bytes.
pub(super) fn sector(device: &File) -> io::Result<u64> {
    // SAFETY: BLKSSZGET writes one int.
    let bytes = unsafe { ioctl(device, Getter::<BLKSSZGET, i32>::new()) }?;
    u64::try_from(bytes).map_err(io::Error::other)
}

/// Whether a block device takes no writes.
pub(super) fn read_only(device: &File) -> io::Result<bool> {
    // SAFETY: BLKROGET writes one int.
    Ok(unsafe { ioctl(device, Getter::<BLKROGET, i32>::new()) }? != 0)
}

/// Has the kernel read the partition table again.
pub(super) fn reread_partitions(device: &File) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument.
    Ok(unsafe { ioctl(device, NoArg::<BLKRRPART>::new()) }?)
}

/// Tells a device that a part of it holds nothing any more; in bytes, whole sectors.
pub(super) fn discard(device: &File, start: u64, length: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64.
    Ok(unsafe { ioctl(device, Setter::<BLKDISCARD, [u64; 2]>::new([start, length])) }?)
}

/// Has the kernel grow a mounted ext4 filesystem to so many of its blocks.
pub(crate) fn resize(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64.
    Ok(unsafe { ioctl(directory, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }?)
}

/// Forgets what the kernel has cached of a device.
pub(super) fn forget_cache(device: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    Ok(unsafe { ioctl(device, NoArg::<BLKFLSBUF>::new()) }?)
}

/// `struct blkpg_partition`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArg {
    op: i32,
    flags: i32,
    length: i32,
    data: *mut c_void,
}

/// Tells the kernel of a partition that it does not find by itself; in bytes.
pub(super) fn add_partition(device: &File, number: i32, start: u64, length: u64) -> io::Result<()> {
    const BLKPG_ADD_PARTITION: i32 = 1;
    blkpg(device, BLKPG_ADD_PARTITION, number, start, length)
}

/// Has the kernel forget a partition.
pub(super) fn drop_partition(device: &File, number: i32) -> io::Result<()> {
    const BLKPG_DEL_PARTITION: i32 = 2;
    blkpg(device, BLKPG_DEL_PARTITION, number, 0, 0)
}

fn blkpg(device: &File, op: i32, number: i32, start: u64, length: u64) -> io::Result<()> {
    let bytes = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let mut partition =
        BlkpgPartition { start: bytes(start)?, length: bytes(length)?, number, names: [0; 128] };
    let size = i32::try_from(size_of::<BlkpgPartition>()).unwrap_or(i32::MAX);
    let arg = BlkpgArg { op, flags: 0, length: size, data: (&raw mut partition).cast() };
    // SAFETY: BLKPG reads one blkpg_ioctl_arg and the partition behind it, which outlives the call.
    Ok(unsafe { ioctl(device, Setter::<BLKPG, BlkpgArg>::new(arg)) }?)
}

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The number of a loop device that is free now.
pub(super) fn free_loop(control: &File) -> io::Result<i32> {
    /// LOOP_CTL_GET_FREE answers by its return value.
    struct GetFree;
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and changes no memory of ours.
    unsafe impl rustix::ioctl::Ioctl for GetFree {
        type Output = i32;
        const IS_MUTATING: bool = false;
        fn opcode(&self) -> Opcode {
            LOOP_CTL_GET_FREE
        }
        fn as_ptr(&mut self) -> *mut c_void {
            std::ptr::null_mut()
        }
        unsafe fn output_from_ptr(
            out: rustix::ioctl::IoctlOutput,
            _: *mut c_void,
        ) -> rustix::io::Result<i32> {
            Ok(out)
        }
    }
    // SAFETY: see above.
    Ok(unsafe { ioctl(control, GetFree) }?)
}

/// How a loop device is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loop {
    /// To write to, in sectors of 4096 bytes.
    Writable,
    /// To write to, in sectors of 512 bytes, for a filesystem with small blocks.
    Small,
    /// To look at, in sectors of 512 bytes, so that a filesystem of any block size can be mounted.
    ReadOnly,
}

/// Makes a loop device of a part of a file; it goes when nobody has it open any more.
pub(super) fn bind_loop(device: &File, file: &File, offset: u64, length: u64, how: Loop) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    let (flags, block_size) = match how {
        Loop::Writable => (LO_FLAGS_AUTOCLEAR, 4096),
        Loop::Small => (LO_FLAGS_AUTOCLEAR, 512),
        Loop::ReadOnly => (LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY, 512),
    };
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset,
        size_limit: length,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig { fd, block_size, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one loop_config; the descriptor in it is open.
    Ok(unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }?)
}
