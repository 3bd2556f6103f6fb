"""Detection and instance segmentation by COCO's and LVIS' rules."""
