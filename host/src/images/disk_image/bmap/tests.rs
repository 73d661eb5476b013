use super::*;

/// A bmap of an image of 20,000 bytes, whose blocks 0, 1 and 4 have content.
fn text(sums: &[&str], own: bool) -> String {
    let [a, b] =
        [sums.first(), sums.get(1)].map(|sum| sum.map_or(String::new(), |sum| format!(" chksum=\"{sum}\"")));
    let zeros = "0".repeat(64);
    let own_sum = if own { format!("<BmapFileChecksum> {zeros} </BmapFileChecksum>") } else { String::new() };
    let text = format!(
        "<?xml version=\"1.0\" ?>\n<!-- A comment. -->\n<bmap version=\"2.0\">\n<ImageSize> 20000 </ImageSize>\
         <BlockSize> 4096 </BlockSize><BlocksCount> 5 </BlocksCount><MappedBlocksCount> 3 </MappedBlocksCount>\
         <ChecksumType> sha256 </ChecksumType>{own_sum}<BlockMap><Range{a}> 0-1 </Range>\n<Range{b}> 4 </Range>\
         </BlockMap></bmap>\n"
    );
    if !own {
        return text;
    }
    let sum = hex(&Sha256::digest(&text));
    text.replace(&zeros, &sum)
}

fn problem(text: &str) -> String {
    format!("{:#}", Bmap::parse(text).unwrap_err())
}

#[test]
fn an_image_is_what_its_bmap_says() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 20_000], 0).unwrap();
    let sums = [hex(&Sha256::digest([7; 8192])), hex(&Sha256::digest([7; 20_000 - 16_384]))];
    let bmap = Bmap::parse(&text(&[&sums[0], &sums[1]], true)).unwrap();
    assert_eq!(bmap.mapped(), [(0, 8192), (16_384, 20_000)]);
    bmap.verify(&file, 20_000).unwrap();
    assert!(
        bmap.verify(&file, 20_001).unwrap_err().to_string().contains("20000 bytes, and this one has 20001")
    );
    // What is not mapped is not compared.
    file.write_all_at(&[8; 8192], 8192).unwrap();
    bmap.verify(&file, 20_000).unwrap();
    file.write_all_at(&[8], 16_384).unwrap();
    let e = bmap.verify(&file, 20_000).unwrap_err().to_string();
    assert!(e.contains("bytes 16384 to 20000 have another checksum"), "{e}");
    // One without checksums, of an older version.
    let old = Bmap::parse(&text(&[], false).replace("2.0\"", "1.2\"")).unwrap();
    old.verify(&file, 20_000).unwrap();
}

#[test]
fn what_is_no_bmap_of_ours() {
    let good = text(&[], true);
    for (from, to, want) in [
        ("4096", "4095", "blocks have"),
        ("> 5 <", "> 6 <", "number of blocks"),
        ("2.0\"", "3.0\"", "version `3.0`"),
        ("sha256", "md5", "`md5`, which is not compared"),
        (" 0-1 ", " 1-0 ", "checksum"),
        ("comment", "Comment", "its own checksum is wrong"),
        ("<bmap", "<!DOCTYPE a [<!ENTITY b \"c\">]><bmap", "no XML"),
        ("</bmap>", "", "no XML"),
    ] {
        let e = problem(&good.replacen(from, to, 1));
        assert!(e.contains(want), "{want}: {e}");
    }
    let open = text(&[], false);
    for range in ["1-0", "x", "0-18446744073709551615", "5", ""] {
        let e = problem(&open.replace(" 4 ", range));
        assert!(e.contains("range"), "{range}: {e}");
    }
    assert!(problem(&open.replace(" 4 ", " 1 ")).contains("its range `1` is impossible"));
}
