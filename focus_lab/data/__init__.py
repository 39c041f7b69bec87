"""Images and boxes: procedural scenes, COCO folders, transforms, batches."""
