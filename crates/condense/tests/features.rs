//! Clustering and distribution matching on the features of each network of the zoo.

use dcu_artifact::Array;
use dcu_condense::kmeans;
use dcu_condense::matching::Matching;
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Family, Network, Samples, evaluate};

fn small(family: Family) -> Architecture {
    let usual = Architecture::of_family(family, [3, 32, 32], 10);
    let widths = usual.widths.iter().map(|width| width.div_ceil(8)).collect();
    let usual = Architecture { widths, hidden: usual.hidden.div_ceil(32), ..usual };
    match family {
        Family::VitTiny => Architecture { depth: Some(2), ..usual },
        _ => usual,
    }
}

#[test]
fn features_of_each_network_are_clustered_and_matched() {
    let streams = Streams::new(1, "test");
    let mut stream = streams.stream("images");
    let images = (0..24 * 3 * 32 * 32).map(|_| stream.normal()).collect();
    let samples = Samples::of_values(Array::new(vec![24, 3, 32, 32], images), vec![0; 24]).unwrap();
    for family in [
        Family::Mlp,
        Family::Cnn,
        Family::WeakCnn,
        Family::Resnet18,
        Family::Vgg16,
        Family::Vgg16Bn,
        Family::VitTiny,
        Family::Convnet3,
        Family::ConvAutoencoder,
        Family::ConvClassifier,
        Family::Patches,
    ] {
        let network = Network::initialised(&small(family), &streams).unwrap();
        let points = evaluate::features(&network, &samples).unwrap();
        let found = kmeans::cluster(&points, 4, &mut streams.stream("k-means")).unwrap();
        let one = kmeans::cluster(&points, 1, &mut streams.stream("k-means")).unwrap();
        assert!(found.cluster.iter().max() == Some(&3) && found.inertia < one.inertia, "{family:?}");
        let mut matching = Matching::new(&network, &samples, &[8, 1, 15]).unwrap();
        let losses: Vec<f64> = (0..20).map(|_| matching.step(1e-3).unwrap()).collect();
        assert!(losses[19] < losses[0] && losses.iter().all(|loss| loss.is_finite()), "{family:?}: {losses:?}");
        let (images, weights) = matching.finish().unwrap();
        assert_eq!((images.len(), weights.len()), (3 * 3 * 32 * 32, 24), "{family:?}");
        assert!(images.iter().all(|value| value.is_finite()));
    }
}
