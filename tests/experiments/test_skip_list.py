import skip_list


def result(loss, share=0.0):
    return {"valid_loss": loss, "share": share}


def test_gaps_are_to_fp32_of_the_same_seed():
    def point(arm, seed):
        recipe = "fp32" if arm == "fp32" else "mxfp4"
        return skip_list.Point(recipe=recipe, arm=arm, seed=seed, steps=1, width=64, depth=4)

    found = {
        point("fp32", 0): result(2.0),
        point("fp32", 1): result(3.0),
        point("suggested", 0): result(2.5, 0.25),
        point("suggested", 1): result(3.7, 0.35),
    }
    row = skip_list.report(["mxfp4"], found).splitlines()[-1]
    assert row == "| mxfp4 | suggested | 30.0% | 0.6000 ± 0.1414 | +0.5000, +0.7000 |"
